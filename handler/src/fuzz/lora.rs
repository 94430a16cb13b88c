//! LoRA files. Everything that a header claims must be in the file, so that no claim can make us allocate memory.

use diffusion::{loading::Header, lora::Lora};
use std::io::Cursor;

/// Whether the bytes are a LoRA that can be loaded.
pub fn lora(bytes: &[u8]) -> bool {
    let read = Lora::from_bytes(bytes);
    let Ok(header) = Header::read(&mut Cursor::new(bytes)) else {
        assert!(read.is_err(), "a file without a header was read");
        return false;
    };
    within_the_file(&header, bytes.len());
    if let Ok(lora) = &read {
        assert!((1..=header.tensors.len()).contains(&lora.modules()), "{} modules", lora.modules());
        assert_eq!(lora.sha256().len(), 64);
    }
    read.is_ok()
}

fn within_the_file(header: &Header, length: usize) {
    let data = usize::try_from(header.data).expect("data begins beyond the file");
    assert!((8..=length).contains(&data), "data begins at {data} of {length}");
    let mut at = 0;
    for (name, info) in &header.tensors {
        let (start, end) = info.data_offsets;
        assert!(start == at && start <= end && end <= length - data, "`{name}` is at {start}..{end} after {at}");
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &side| bits.checked_mul(side));
        assert_eq!(bits, Some((end - start) * 8), "`{name}` is {info:?}");
        at = end;
    }
    assert_eq!(at, length - data, "data that no tensor has");
    let names: usize = header.tensors.iter().map(|(name, _)| name.len()).sum();
    let texts: usize = header.metadata.iter().map(|(name, text)| name.len() + text.len()).sum();
    assert!(names + texts <= data, "more text than the header has");
}
