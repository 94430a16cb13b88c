//! The SHA-256 of a LoRA file, by which a picture's file names it.

use sha2::{Digest, Sha256};
use std::{fs::File, io, os::unix::fs::FileExt};

/// How much of a file is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Of a file, without moving the place from which others read it.
pub(super) fn of_file(file: &File) -> io::Result<String> {
    let (mut sum, mut chunk, mut place) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        match file.read_at(&mut chunk, place) {
            Ok(0) => return Ok(hex::encode(sum.finalize())),
            Ok(read) => {
                sum.update(&chunk[..read]);
                place += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Of what is in memory.
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
