"""What checks annotations, those of jaxtyping's shapes among them, while tests run."""

from beartype import BeartypeConf, beartype

# A whole number serves where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
