"""The errors a person can meet: each says what was given, what is allowed and what to do."""


class HatcheryError(Exception):
    """Base of every error that is the input's fault; its text may be shown to a person as it is."""


class ConfigError(HatcheryError, ValueError):
    """A configuration value is unknown, of the wrong type or outside its bound."""


class CheckpointError(HatcheryError, ValueError):
    """A checkpoint is missing, damaged, hostile or does not fit its configuration."""


class StateError(HatcheryError, ValueError):
    """A saved memory is damaged or belongs to another model."""


class MergeError(HatcheryError, ValueError):
    """Models cannot be merged in the way that was asked for."""


class DataError(HatcheryError, ValueError):
    """Text, bytes or options given to a model or a run cannot be used."""


class TrainingError(HatcheryError):
    """A run cannot go on; what it saved last is kept."""
