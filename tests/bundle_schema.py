"""What MONAI's bundle specification asks of ``metadata.json``, as a schema."""

SPECIFIED = {
    "type": "object",
    "required": ["schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
                 "required_packages_version", "task", "description", "authors", "copyright", "network_data_format"],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        **{k: {"type": "string", "minLength": 1} for k in ("schema", "monai_version", "pytorch_version", "task")},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {"type": "object", "additionalProperties": {
                "type": "object",
                "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
                             "channel_def"],
                "properties": {"num_channels": {"type": "integer"}, "spatial_shape": {"type": "array"},
                               "value_range": {"type": "array"}, "is_patch_data": {"type": "boolean"},
                               "channel_def": {"type": "object", "additionalProperties": {"type": "string"}}},
            }},
        },
    },
}  # fmt: skip
