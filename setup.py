"""Package metadata: floors without upper caps. The floors are what `make test-oldest` tests (constraints-oldest.txt);
the versions that all else was measured with stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "src/ratlip_hf/version.py").read_text(), VERSION)

EXTRAS = {
    "train": ["datasets>=4.0.0", "fsspec>=2025.3.0", "pyarrow>=26.0.1", "tensorboard>=2.18.0", "tqdm>=4.66.3"],
    "eval": ["evaluate>=0.4.6", "datasets>=4.0.0"],
    "demo": ["gradio[mcp]>=6.29"],
    "plots": ["matplotlib>=3.9.0"],
    "export": ["torch>=2.13", "onnx>=1.19.0", "onnxruntime>=1.22.0"],
}
EXTRAS["web"] = EXTRAS["export"]  # the page's own libraries lie in the package: docs/web.md
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["eval"],
    *EXTRAS["export"],
    "build>=1.2.1",
    "captum>=0.9.0",  # our Grad-CAM is compared with its
    "ipykernel>=7.4.0",
    "mypy>=2.4.1",
    "nbclient>=0.11.0",
    "PyYAML>=6.0.2",
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
    author="The ratlip_hf developers",
    project_urls={"Paper": "https://arxiv.org/abs/2405.08114"},  # whoever hosts the project adds its address
    keywords=["text-to-image", "GAN", "CLIP", "diffusers", "RATLIP", "GALIP"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "ratlip_hf": [
            "py.typed",
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
