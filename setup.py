"""Package metadata: floors without upper caps. The floors are what `make test-oldest` tests (constraints-oldest.txt);
the versions that all else was measured with stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "src/ratlip_hf/version.py").read_text(), VERSION)

EXTRAS = {
    "train": ["datasets>=4.0.0", "pyarrow>=26.0.1", "tensorboard>=2.18.0", "tqdm>=4.66.3"],
    "eval": ["evaluate>=0.4.6", "datasets>=4.0.0"],
    "demo": ["gradio>=6"],
    "plots": ["matplotlib>=3.9.0"],
    "export": ["torch>=2.13", "onnx>=1.19.0", "onnxruntime>=1.22.0", "onnxscript>=0.7.0"],
}
EXTRAS["web"] = EXTRAS["export"]  # the page's own libraries lie in the package: docs/web.md
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["eval"],
    *EXTRAS["export"],
    "build>=1.2.1",
    "captum>=0.9.0",  # our Grad-CAM is compared with its
    "pytest>=8.0.0",
    "pytest-xdist>=3.6.1",
    "ruff>=0.17.6",
    "setuptools>=77.0.3",
]

setup(
    name="ratlip_hf",
    version=VERSION["__version__"],
    description="RATLIP and GALIP text-to-image GANs in the Hugging Face ecosystem",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "ratlip_hf": [
            "assets/**/*.json",
            "assets/**/*.md",
            "assets/**/*.safetensors",
            "evaluate_modules/*/*.py",
            "synthetic_birds/*.jsonl",
            "training/configs/*.json",
            "web/page/**/*",
        ]
    },
    install_requires=[
        "torch>=2.8",
        "transformers>=5.0.0",
        "diffusers>=0.38.0",
        "accelerate>=1.7.0",
        "huggingface_hub>=1.10.0",
        "safetensors>=0.8.0",
        "Jinja2>=3.1.2",
        "Pillow>=12.0.0",
        "numpy>=2.0.0",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ratlip=ratlip_hf.cli.main:main"]},
)
