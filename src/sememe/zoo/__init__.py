"""What can be loaded by name: the models that come with the package, and what identifies a model's files."""

from sememe.zoo.catalogue import ModelRecord, describe_model, is_hub_id, list_models, resolve_model
from sememe.zoo.fingerprint import ModelFingerprint, fingerprint_model, hash_file

__all__ = [
    "ModelFingerprint",
    "ModelRecord",
    "describe_model",
    "fingerprint_model",
    "hash_file",
    "is_hub_id",
    "list_models",
    "resolve_model",
]
