"""Named model configurations: the paper, the released code, its parent GALIP, and a small one for small worlds.
Each entry lists only what differs from the defaults of the classes, which are the `ratlip` preset."""

PRESETS: dict[str, dict[str, dict]] = {
    # The paper's recurrence; shuffle attention where the released code has it (method section 4).
    "ratlip": {"generator": {}, "discriminator": {}},
    # The authors' code as it is: samples of one batch are coupled, pixels are normalised twice.
    "ratlip-released": {
        "generator": {"recurrence": "batch_as_time"},
        "discriminator": {"unused_shortcuts": True, "clip_input": "released"},
    },
    "galip": {
        "generator": {"fusion": "cat", "bridge_conv": "plain", "image_conv": "plain"},
        "discriminator": {"unused_shortcuts": True, "clip_input": "released"},
    },
    # 64-px pictures against the small CLIP of the synthetic birds.
    "tiny": {
        "generator": {
            "sample_size": 64,
            "noise_dim": 32,
            "text_dim": 128,
            "clip_width": 96,
            "clip_grid": 8,
            "base_channels": 16,
            "bridge_channels": 32,
            "prompt_layers": (0, 1, 2, 3),
            "attention_groups": 4,
            "image_conv": "plain",
            "upsampling": "bilinear",
            "text_center": True,
            "text_norm": 8.0,
        },
        "discriminator": {
            "clip_width": 96,
            "clip_grid": 8,
            "text_dim": 128,
            "feature_layers": (0, 2, 4),
            "extractor_channels": 64,
            "head_channels": 64,
            "gate_init": 1.0,
            "scale_features": True,
            "text_center": True,
            "text_norm": 8.0,
        },
    },
}


def preset(name: str) -> dict[str, dict]:
    """{"generator": {...}, "discriminator": {...}} of a preset. Raises ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
