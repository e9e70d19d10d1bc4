//! Ways to the inside for the fuzz targets (`fuzz/`); in their builds only.

use std::io;

use crate::{process::Device, protocol::InitSpec, runtime_api::Said};

/// Gives a guest process's device these bytes in pieces, as its program's answers.
///
/// # Errors
/// When they are no answers.
pub fn device_answers(pieces: &[&[u8]], said: &mut Vec<Said>) -> io::Result<()> {
    let limits = crate::protocol::Limits {
        memory_bytes: 0,
        tmp_bytes: 0,
        cpus: 1,
    };
    let (mut device, _program) = Device::new(&InitSpec {
        handler: String::new(),
        environment: Vec::new(),
        task_root: String::new(),
        limits,
    })?;
    pieces.iter().try_for_each(|piece| device.take(piece, said))
}
