"""What an inference endpoint runs: `ratlip export hub` copies this file into the repository, so it imports nothing
else of the package."""

import torch

MOST_IMAGES = 64  # of one request


class EndpointHandler:
    """The class that Hugging Face's inference endpoints look for in a repository's `handler.py`.

    Args:
        path: folder with the repository.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            from ratlip_hf import RATLIPPipeline

            self.pipe = RATLIPPipeline.from_pretrained(path).to(device)
        except ModuleNotFoundError as error:  # the repository's own code, if it was exported with it
            if error.name != "ratlip_hf":
                raise
            from diffusers import DiffusionPipeline

            self.pipe = DiffusionPipeline.from_pretrained(path, trust_remote_code=True).to(device)

    def __call__(self, data: dict):
        """Answer a request.

        Args:
            data: "inputs" is the prompt, or a list of them; "parameters" may have `num_images_per_prompt`,
                `truncation` as the pipeline's call, and `seed`, a number: image i of all takes seed + i.

        Returns:
            The image (PIL) for a request of one, else a list of them in the order of the prompts. Raises ValueError
            for what cannot be made, which the endpoint sends as status 400.
        """
        prompts = data.get("inputs")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError("inputs must be a prompt or a list of prompts")
        options = dict(data.get("parameters") or {})
        if unknown := options.keys() - {"num_images_per_prompt", "seed", "truncation"}:
            raise ValueError(f"unknown parameters: {', '.join(sorted(unknown))}")
        seed, each = options.pop("seed", None), options.get("num_images_per_prompt", 1)
        if not isinstance(each, int) or not 1 <= each * len(prompts) <= MOST_IMAGES:
            raise ValueError(f"between 1 and {MOST_IMAGES} images can be made by one request")
        if seed is not None:
            if not isinstance(seed, int) or not 0 <= seed < 2**63 - MOST_IMAGES:
                raise ValueError("seed must be a whole number that is not negative")
            count = each * len(prompts)
            options["generator"] = [torch.Generator().manual_seed(seed + index) for index in range(count)]
        images = self.pipe(prompts, **options).images
        return images[0] if len(images) == 1 else images
