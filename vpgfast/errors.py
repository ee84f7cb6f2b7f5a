"""Errors that a user can cause and mend; the commands print them as one line, without a stack trace."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong; the message says what was found, where, and what to do."""


class AnnotationError(UserError):
    """An annotation file is missing or malformed; names the file and, where there is one, the line or key."""


class FeatureError(UserError):
    """Features of a video are missing, unreadable or unfit; names the video and the file."""


class VideoError(UserError):
    """A video file can't be decoded; names the file."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another method or width."""


class EmbeddingError(UserError, ValueError):
    """A model's vector of a video or a paragraph has no direction: odd features, or a training that diverged."""


class ConfigError(UserError):
    """A configuration file or option is wrong; names the key and the nearest valid one."""


class SearchIndexError(UserError):
    """An index of videos is missing, damaged, or holds something else; names the folder and the file."""
