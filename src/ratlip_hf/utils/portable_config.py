"""Saved configurations that say nothing about the machine they were made on.
diffusers would write the folder that a model was loaded from into them, and a push would publish it."""

import json


class PortableConfig:
    """Mixin for diffusers' `ConfigMixin`, to stand before it among the bases."""

    def to_json_string(self) -> str:
        """The configuration as it is saved, without the place that it was loaded from."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
