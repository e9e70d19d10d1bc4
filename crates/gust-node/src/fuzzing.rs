//! Ways to the inside for the fuzz targets (`fuzz/`); in their builds only.

/// Reads the first page of a stored snapshot as if its checksum were right: `data` is the description.
pub fn snapshot_description(data: &[u8]) {
    crate::snapshot::read_any_description(data);
}
