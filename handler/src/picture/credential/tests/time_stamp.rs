//! Time stamps, from an authority made of OpenSSL and a small HTTP server.

use super::*;
use rcgen::CustomExtension;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

/// Extension extendedKeyUsage (RFC 5280) with timeStamping alone: OID and value.
const PURPOSE: (&[u64], &[u8]) = (&[2, 5, 29, 37], &[0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 8]);
const SETTINGS: &str = "[tsa]\ndefault_tsa=one\n[one]\nserial=serial\nsigner_digest=sha256\ndefault_policy=1.2.3.4\n\
                        digests=sha256,sha384,sha512\ness_cert_id_alg=sha256\n";

/// A server that answers each request with the status line and the body that `answer` makes of the request's body.
fn serve(answer: impl Fn(&[u8]) -> (&'static str, Vec<u8>) + Send + 'static) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/stamp", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (status, body) = answer(&body_of(&stream));
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-type: application/timestamp-reply\r\ncontent-length: {length}");
            let head = format!("{head}\r\nconnection: close\r\nlocation: /elsewhere\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        }
    });
    url.parse().unwrap()
}

fn body_of(stream: &TcpStream) -> Vec<u8> {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
            None if line.trim().is_empty() => break,
            _ => (),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    body
}

/// The answer of OpenSSL, with the files of the folder.
fn openssl(folder: &Path, query: &[u8]) -> Vec<u8> {
    fs::write(folder.join("query"), query).unwrap();
    let arguments = "ts -reply -config settings -queryfile query -signer stamper.pem -inkey stamper.key -out reply";
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(folder.join("reply")).unwrap()
}

fn stamped_by(url: &Url) -> (Authority, Credential) {
    let (authority, [(key, _), ..]) = (Authority::new("authority"), keys());
    let certificate = authority.sign(&key, |_| ()).parse().unwrap();
    let credential = Credential::open(&certificate, &key.serialize_pem().parse().unwrap(), Some(url)).unwrap();
    (authority, credential)
}

#[test]
fn a_credential_holds_the_stamp_of_the_authority() {
    let folder = tempfile::tempdir().unwrap();
    let (issuer, key) = (Authority::new("time"), KeyPair::generate().unwrap());
    let stamper = issuer.sign(&key, |params| {
        let mut purpose = CustomExtension::from_oid_content(PURPOSE.0, PURPOSE.1.to_vec());
        purpose.set_criticality(true);
        params.extended_key_usages.clear();
        params.custom_extensions.push(purpose);
    });
    for (name, text) in [("stamper.pem", stamper), ("stamper.key", key.serialize_pem()), ("settings", SETTINGS.into())]
    {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let path = folder.path().to_owned();
    let (authority, credential) = stamped_by(&serve(move |query| ("200 OK", openssl(&path, query))));
    for (format, _, signed) in files(&credential, false) {
        let reader = read(&signed, format, &authority.pem);
        let results = reader.validation_results().and_then(|results| results.active_manifest()).unwrap();
        let right: Vec<&str> = results.success().iter().map(|status| status.code()).collect();
        assert!(right.contains(&"timeStamp.validated"), "{format}: {right:?}");
        assert!(reader.active_manifest().unwrap().signature_info().unwrap().time.is_some(), "{format}");
    }
}

#[test]
fn without_its_stamp_a_picture_is_not_signed() {
    let dot = || {
        let mut file = Cursor::new(Vec::new());
        RgbImage::new(1, 1).write_to(&mut file, image::ImageFormat::Png).unwrap();
        file.into_inner()
    };
    for (answer, said) in [
        (("503 Service Unavailable", vec![]), "503"),
        (("302 Found", vec![]), "302"),
        (("200 OK", vec![0; 20_000]), "more than 10000 bytes"),
        (("200 OK", b"no stamp".to_vec()), ""),
    ] {
        let (_, credential) = stamped_by(&serve(move |_| answer.clone()));
        let error = credential.write(dot(), Format::Png, json!({})).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}
