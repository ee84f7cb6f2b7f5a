"""The encoder that a model's features were made with, for videos that it has not seen."""

from __future__ import annotations

import torch

from vpgfast.checkpoint import Checkpoint
from vpgfast.encoders.base import Encoder, load_encoder
from vpgfast.encoders.identity import Identity
from vpgfast.encoders.specs import format_spec, parse_spec
from vpgfast.errors import CheckpointError, ConfigError


def encoder_of(checkpoint: Checkpoint, spec: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a model's features.

    Args:
        checkpoint: says which encoder it is.
        spec: of the same encoder, where its weights lie elsewhere now; options that it does not name are the run's.
            Where the checkpoint does not know its encoder, the user's word for it.
        device: where the network goes.

    Raises:
        CheckpointError: the checkpoint does not know its encoder and none is named, or another one is named.
        ConfigError: the weights are not where they were.
    """
    made = checkpoint.encoder
    if made is None:
        if spec is None:
            raise CheckpointError(
                f"this model takes {checkpoint.feature_source} (width {checkpoint.feature_dim}) and does not know what "
                "made them: give features that the same tool has made of the video (to ground as --features FILE "
                "--duration SECONDS), or name the encoder by --encoder SPEC"
            )
        encoder = load_encoder(spec, device=device)
        if encoder.dim != checkpoint.feature_dim:
            raise CheckpointError(
                f"--encoder {spec}: makes features of width {encoder.dim}, but this model takes "
                f"{checkpoint.feature_dim} ({checkpoint.feature_source})"
            )
        return encoder
    family, weights, options = parse_spec(spec or made.spec)
    if family != made.family:
        raise CheckpointError(f"--encoder {spec}: this model's features were made by {made.spec}")
    try:
        encoder = load_encoder(format_spec(family, weights, parse_spec(made.spec)[2] | options), device=device)
    except ConfigError as error:
        if spec is not None:
            raise
        raise ConfigError(
            f"this model's features were made by {made.spec}; {error}. Where it lies elsewhere now, say so by --encoder"
        ) from None
    if differences := encoder.identity().differences(made):
        raise CheckpointError(
            f"--encoder {spec or made.spec}: is not what this model's features were made with: "
            f"{'; '.join(differences[:3])}"
        )
    return encoder


def check_same_encoder(features: Identity | None, checkpoint: Checkpoint, where: str) -> None:
    """Refuse features that are known to be of another encoder than a model's.

    Args:
        features: what made them, where that is known.
        checkpoint: of the model.
        where: the features are, for the message.

    Raises:
        CheckpointError: both are known and differ; names what differs.
    """
    made = checkpoint.encoder
    if features is not None and made is not None and (differences := features.differences(made)):
        raise CheckpointError(
            f"{where}: made by {features.spec}, but this model's features by {made.spec}: {'; '.join(differences[:3])}"
        )
