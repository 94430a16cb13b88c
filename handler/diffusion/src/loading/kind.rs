//! Says what a file is that stands where weights or settings should be: a Git LFS pointer, a web page, a pickle.
//!
//! Downloads that went wrong leave such files, often under the right name. The first bytes tell.

use crate::error::{MAX_NAME, cut};
use std::{
    fmt,
    io::{self, Read},
};

/// How much of a file's start is looked at, in bytes.
const START: usize = 1024;

/// What a file is that is none of the expected kind. `Display` continues after "it is", and ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// It has no bytes.
    Empty,
    /// The text that stands in a Git repository for a large file, with the large file's length in bytes.
    LfsPointer(Option<u64>),
    /// HTML: a login page, a page about the file, or a proxy's message.
    WebPage,
    /// XML, with the code that S3 and its like put there.
    Xml(Option<String>),
    /// JSON, with the message that a server put there.
    Json(Option<String>),
    /// Another text, with its first line.
    Text(String),
    /// What `torch.save` writes. A pickle can run code, so it is never loaded.
    Pickle,
    /// An archive or a compressed file, with the format's name.
    Archive(&'static str),
    /// Weights in a format that is not read, with its name.
    OtherWeights(&'static str),
    /// A picture.
    Picture,
}

/// First bytes of binary formats.
const SIGNATURES: [(&[u8], FileKind); 11] = [
    (b"\x1f\x8b", FileKind::Archive("gzip")),
    (b"BZh", FileKind::Archive("bzip2")),
    (b"\xfd7zXZ\0", FileKind::Archive("xz")),
    (b"\x28\xb5\x2f\xfd", FileKind::Archive("zstd")),
    (b"7z\xbc\xaf\x27\x1c", FileKind::Archive("7z")),
    (b"Rar!\x1a\x07", FileKind::Archive("RAR")),
    (b"GGUF", FileKind::OtherWeights("GGUF")),
    (b"\x89HDF\r\n\x1a\n", FileKind::OtherWeights("HDF5 (Keras)")),
    (b"\x93NUMPY", FileKind::OtherWeights("NumPy")),
    (b"\x89PNG\r\n\x1a\n", FileKind::Picture),
    (b"\xff\xd8\xff", FileKind::Picture),
];

impl FileKind {
    /// The kind of a file whose first bytes, up to `START`, are `start`. None if nothing is known of it, as of a safetensors file.
    pub fn of(start: &[u8]) -> Option<Self> {
        if start.is_empty() {
            return Some(Self::Empty);
        }
        let zip = start.starts_with(b"PK\x03\x04");
        // torch's archives begin with their pickle, whose name ends so.
        let zipped_pickle = zip && start.windows(4).any(|part| part == b".pkl");
        if zipped_pickle || matches!(start, [0x80, 2..=5, ..]) {
            return Some(Self::Pickle);
        }
        if zip {
            return Some(Self::Archive("ZIP"));
        }
        if start.get(257..262) == Some(b"ustar") {
            return Some(Self::Archive("tar"));
        }
        let signed = SIGNATURES.iter().find(|(signature, _)| start.starts_with(signature));
        signed.map(|(_, kind)| kind.clone()).or_else(|| Self::of_text(start))
    }

    /// The kind of a file that should be a JSON object of settings. None if it may be one.
    pub fn instead_of_settings(content: &[u8]) -> Option<Self> {
        match Self::of(&content[..content.len().min(START)])? {
            Self::Json(None) => None,
            Self::Json(said) => server_said(content).map(|_| Self::Json(said)),
            other => Some(other),
        }
    }

    /// The kind of the content of `source`, which is read from where it stands.
    ///
    /// # Errors
    /// Reading fails.
    pub fn read(source: &mut impl Read) -> io::Result<Option<Self>> {
        let mut start = Vec::new();
        source.take(START as u64).read_to_end(&mut start)?;
        Ok(Self::of(&start))
    }

    /// The kind of a text. None for bytes that are no text.
    fn of_text(start: &[u8]) -> Option<Self> {
        // The last character may be cut.
        let valid = start.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let text = valid.trim_start_matches('\u{feff}').trim_start();
        let is_text = valid.len() + 4 > start.len()
            && !valid.contains(|letter: char| letter.is_control() && !letter.is_whitespace());
        if !is_text {
            return None;
        }
        let lower = text.to_ascii_lowercase();
        Some(if text.starts_with("version https://git-lfs") || text.starts_with("version https://hawser") {
            let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
            Self::LfsPointer(size)
        } else if ["<!doctype html", "<html", "<head", "<body", "<script"].iter().any(|tag| lower.starts_with(tag)) {
            Self::WebPage
        } else if text.starts_with('<') {
            let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
            // XHTML declares itself as XML.
            if lower.contains("<html") { Self::WebPage } else { Self::Xml(code.map(|(code, _)| shown(code))) }
        } else if text.starts_with('{') || text.starts_with('[') {
            Self::Json(server_said(start))
        } else {
            Self::Text(shown(text.lines().next().unwrap_or_default()))
        })
    }
}

/// The message of a JSON object by which a server tells an error: it has few fields. None for any other.
fn server_said(content: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(content).ok()?;
    let fields = value.as_object().filter(|fields| fields.len() <= 4)?;
    ["error", "message", "detail"].iter().find_map(|field| {
        let said = fields.get(*field)?;
        let text = said.as_str().or_else(|| said.get("message")?.as_str());
        Some(shown(text.map_or_else(|| said.to_string(), str::to_string).as_str()))
    })
}

fn shown(text: &str) -> String {
    cut(text.trim(), MAX_NAME).into_owned()
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |said: &Option<String>| said.as_ref().map_or_else(String::new, |said| format!(" (`{said}`)"));
        match self {
            Self::Empty => f.write_str("an empty file: it has 0 bytes; fetch it again"),
            Self::LfsPointer(bytes) => {
                let bytes = bytes.map_or_else(String::new, |bytes| format!(" of {bytes} bytes"));
                write!(f, "a Git LFS pointer, not the file{bytes} itself: run `git lfs pull` in its repository, or download it")
            }
            Self::WebPage => f.write_str(
                "a web page, not the file: download the file itself (on huggingface.co from /resolve/, not /blob/), signed in if its site \
                 asks for that",
            ),
            Self::Xml(code) => write!(f, "XML{}, as a storage service answers an error: fetch the file again", said(code)),
            Self::Json(message) => write!(f, "JSON{}, as a server answers an error: fetch the file again", said(message)),
            Self::Text(line) => write!(f, "a text (`{line}`): fetch the file again"),
            Self::Pickle => f.write_str("a pickled PyTorch file, not a safetensors file: convert it to safetensors"),
            Self::Archive(format) => write!(f, "packed by {format}: unpack it"),
            Self::OtherWeights(format) => write!(f, "a {format} file, which is not read: take the same weights as safetensors"),
            Self::Picture => f.write_str("a picture: fetch the file again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa\nsize 4265146304\n";

    #[test]
    fn each_kind_is_said_with_what_to_do() {
        let mut tar = vec![0; 512];
        tar[..5].copy_from_slice(b"unet/");
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 24] = [
            (b"", "an empty file: it has 0 bytes"),
            (POINTER, "not the file of 4265146304 bytes itself: run `git lfs pull`"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"),
            (b"<!DOCTYPE html><html class=\"\"><head>", "a web page"),
            (b"\xef\xbb\xbf\n <!doctype HTML>", "a web page"),
            (b"<html><body>403 Forbidden", "a web page"),
            (b"<?xml version=\"1.0\"?><!DOCTYPE html PUBLIC \"x\"><html>", "a web page"),
            (
                b"<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code></Error>",
                "XML (`AccessDenied`), as a storage service",
            ),
            (b"<svg>", "XML, as a storage service"),
            (b"{\"error\":\"Repository not found\"}", "JSON (`Repository not found`), as a server answers"),
            (b"{\"error\": {\"code\": 404, \"message\": \"gone\"}}", "JSON (`gone`)"),
            (b"{\"message\":[1]}", "JSON (`[1]`)"),
            (b"{\"sample_size\": 64", "JSON, as a server"),
            (b"Entry not found", "a text (`Entry not found`): fetch"),
            ("Zugriff verweigert für Sie\nx".as_bytes(), "a text (`Zugriff verweigert für Sie`)"),
            (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pklFB", "a pickled PyTorch file"),
            (b"\x80\x02\x8a\nl\xfc\x9cF", "a pickled PyTorch file"),
            (b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0model.safetensors", "packed by ZIP: unpack it"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "packed by gzip"),
            (&tar, "packed by tar"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "packed by 7z"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"\x89PNG\r\n\x1a\n\0\0", "a picture"),
            (b"\xff\xd8\xff\xe0", "a picture"),
        ];
        for (start, said) in cases {
            let kind = FileKind::of(start).unwrap_or_else(|| panic!("{said}")).to_string();
            assert!(kind.contains(said), "{kind}");
        }
        // A safetensors file, and bytes of any other kind.
        for start in [&b"\x40\0\0\0\0\0\0\0{\"a\":{\"dtype\""[..], b"\0\0\0\0", b"\x01\x02\x03", b"\xfe\xff\0a"] {
            assert_eq!(FileKind::of(start), None, "{start:?}");
        }
        let long = FileKind::of("x".repeat(START).as_bytes()).unwrap().to_string();
        assert!(long.contains("xxx… (cut, 1024 bytes in all)"), "{long}");
    }

    #[test]
    fn settings_are_taken_for_settings_unless_a_server_wrote_them() {
        let many = "{\"error\": \"\", \"a\": 1, \"b\": 2, \"c\": 3, \"d\": 4}";
        for settings in [
            "{}",
            "{\"sample_size\": 64}",
            "{\"errors\": \"replace\"}",
            many,
            &format!("{{\"a\": \"{}\"}}", "x".repeat(2 * START)),
            "[1",
        ] {
            assert_eq!(FileKind::instead_of_settings(settings.as_bytes()), None, "{settings}");
        }
        for other in ["", "{\"error\": \"Invalid username or password.\"}", "<html>", "Not Found"] {
            assert!(FileKind::instead_of_settings(other.as_bytes()).is_some(), "{other}");
        }
    }
}
