"""Makes the package known to diffusers, so that its `from_pretrained` (`DiffusionPipeline`, `AutoModel`,
`AutoPipelineForText2Image`) find our classes.
It is told as soon as its part that loads pipelines is imported, and never before."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable

_LOADING, _PIPELINES = "diffusers.pipelines.pipeline_loading_utils", "diffusers.pipelines.pipeline_utils"
_AUTO = "diffusers.pipelines.auto_pipeline"


def register(*classes: type) -> None:
    """Put the classes where diffusers looks for them: pipelines and AutoModel's classes on its own module, components
    in libraries that it knows. With its entry there, model_index.json says ["ratlip_hf", "RATLIPGenerator"], which
    outlives any move of the defining module."""
    import diffusers
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    LOADABLE_CLASSES["ratlip_hf"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
    for public in classes:
        setattr(diffusers, public.__name__, public)
        if issubclass(public, diffusers.DiffusionPipeline):
            # diffusers' own pipeline tests read the source of `encode_prompt` through this module.
            setattr(diffusers.pipelines, public.__name__, public)


def register_when_needed() -> None:
    """Import our pipeline, which registers, once diffusers can load pipelines: now, or when that part is imported.

    That part takes seconds to import, which a program that only wants our networks or losses need not wait for.
    """
    if _AUTO in sys.modules:
        _join_text_to_image()
    else:
        sys.meta_path.insert(0, _AfterImport(_AUTO, _join_text_to_image))
    if _PIPELINES in sys.modules:
        _import_pipeline()
        return
    sys.meta_path.insert(0, _AfterImport(_PIPELINES, _import_pipeline))
    # AutoModel imports this part alone. Where it is on behalf of the other, that is not complete yet.
    sys.meta_path.insert(0, _AfterImport(_LOADING, lambda: _PIPELINES in sys.modules or _import_pipeline()))


def _import_pipeline() -> object:
    return importlib.import_module("ratlip_hf.pipeline")


def _join_text_to_image() -> None:
    """`AutoPipelineForText2Image` goes by a table of its own, name of a family -> class of its pipelines."""
    pipeline = importlib.import_module("ratlip_hf.pipeline").RATLIPPipeline
    sys.modules[_AUTO].AUTO_TEXT2IMAGE_PIPELINES_MAPPING["ratlip"] = pipeline


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module the way it is always found, and does something right after it was imported; once."""

    def __init__(self, name: str, action: Callable[[], object]):
        self.name, self.action = name, action

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            self.action()

        spec.loader.exec_module = exec_module
        return spec
