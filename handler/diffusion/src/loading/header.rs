//! Reads safetensors files from anyone: the header is checked before its claims are used.
//!
//! The memory needed is bounded by the file's real length, and data is read in chunks of [`CHUNK`] bytes.

use super::kind::FileKind;
use crate::error::{MAX_MESSAGE, MAX_NAME, cut};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::{
    collections::HashMap,
    fmt,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
};

/// The longest header, in bytes, as in the safetensors library.
const MAX_HEADER: u64 = 100_000_000;
/// The most tensors of one file. SD1.5 has about 900.
const MAX_TENSORS: usize = 65_536;
/// How much of a tensor is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// Why a file cannot be used as a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The bytes are not a safetensors file.
    #[error("it is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The bytes are something else, whatever the file's name says.
    #[error("it is {0}")]
    OtherKind(FileKind),
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    File(#[from] io::Error),
}

impl HeaderError {
    fn not_safetensors(reason: &str) -> Self {
        Self::NotSafetensors(cut(reason, MAX_MESSAGE).into_owned())
    }
}

/// The header of a safetensors file, checked against the file's length.
pub struct Header {
    /// The file's `__metadata__`.
    pub metadata: HashMap<String, String>,
    /// Names with dtype, shape and offsets, in the order of the data.
    pub tensors: Vec<(String, TensorInfo)>,
    /// The offset of the data, in bytes.
    pub data: u64,
}

impl Header {
    /// Reads and checks the header. Reads no tensor data.
    ///
    /// # Errors
    /// `NotSafetensors` or `OtherKind` for wrong content, `File` if reading fails.
    pub fn read(source: &mut (impl Read + Seek)) -> Result<Self, HeaderError> {
        let refused = |reason: String| HeaderError::not_safetensors(&reason);
        let length = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        // Its length, and the brace of its JSON. Other kinds of files may begin with a length that fits, too.
        let mut first = [0; 9];
        let held = length.min(9) as usize;
        read_exactly(source, &mut first[..held])?;
        let claim = u64::from_le_bytes(first[..8].try_into().unwrap_or_default());
        if held < 9 || first[8] != b'{' || claim > length - 8 || claim > MAX_HEADER {
            source.seek(SeekFrom::Start(0))?;
            if let Some(kind) = FileKind::read(source)? {
                return Err(HeaderError::OtherKind(kind));
            }
            if length < 8 {
                return Err(refused(format!("it has {length} bytes")));
            }
        }
        if claim > length - 8 || claim > MAX_HEADER {
            let (room, limit) = (length - 8, MAX_HEADER);
            let reason = format!("its header claims {claim} bytes, {room} follow in the file and {limit} is the limit");
            return Err(refused(reason));
        }
        source.seek(SeekFrom::Start(8))?;
        let mut text = vec![0; claim as usize];
        read_exactly(source, &mut text)?;
        let Listing { metadata, mut tensors } =
            serde_json::from_slice(&text).map_err(|error| refused(format!("header: {error}")))?;
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let checked = Metadata::new(None, tensors.clone()).map_err(|error| refused(format!("header: {error}")))?;
        let (described, held) = (checked.data_len() as u64, length - 8 - claim);
        if described != held {
            return Err(refused(format!("its header describes {described} bytes of data, the file holds {held}")));
        }
        Ok(Self { metadata, tensors, data: 8 + claim })
    }

    /// Calls `take` with the bytes of one tensor, in chunks of whole numbers.
    ///
    /// # Errors
    /// The file has become shorter, or reading fails.
    pub(crate) fn bytes(
        &self,
        source: &mut (impl Read + Seek),
        info: &TensorInfo,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), HeaderError> {
        let (start, end) = info.data_offsets;
        source.seek(SeekFrom::Start(self.data + start as u64))?;
        let mut chunk = vec![0; CHUNK.min(end - start)];
        let mut left = end - start;
        while left > 0 {
            let size = left.min(CHUNK);
            read_exactly(source, &mut chunk[..size])?;
            take(&chunk[..size]);
            left -= size;
        }
        Ok(())
    }
}

fn read_exactly(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), HeaderError> {
    source.read_exact(buffer).map_err(|error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => HeaderError::NotSafetensors("it is cut short".into()),
        _ => HeaderError::File(error),
    })
}

/// The header's JSON. A duplicate name is an error: it would hide the first one.
struct Listing {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ListingVisitor)
    }
}

struct ListingVisitor;

impl<'de> Visitor<'de> for ListingVisitor {
    type Value = Listing;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listing, A::Error> {
        let mut metadata = None;
        let mut tensors: HashMap<String, TensorInfo> = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let twice = if name == "__metadata__" {
                let found = map.next_value::<Option<HashMap<String, String>>>()?;
                metadata.replace(found.unwrap_or_default()).is_some()
            } else if tensors.contains_key(&name) {
                map.next_value::<IgnoredAny>()?;
                true
            } else {
                tensors.insert(name.clone(), map.next_value()?).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("`{}` stands twice", cut(&name, MAX_NAME))));
            }
        }
        Ok(Listing { metadata: metadata.unwrap_or_default(), tensors: tensors.into_iter().collect() })
    }
}
