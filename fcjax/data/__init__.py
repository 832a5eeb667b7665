"""Prepared data sets: records on disk, and the batches that training reads from them."""

from fcjax.data.pipeline import Mixed, Prepared, training_batches
from fcjax.data.records import decode_record, encode_record, read_index, write_shard

__all__ = ["Mixed", "Prepared", "decode_record", "encode_record", "read_index", "training_batches", "write_shard"]
