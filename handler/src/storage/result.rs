//! Options of the pictures in S3: their keys, how `result_url` leads to them, and what S3 is told when they are stored.

use super::{
    options::{ResultAcl, StoreConfig},
    result_key::KeyTemplate,
};
use aws_sdk_s3::{
    operation::put_object::builders::PutObjectFluentBuilder,
    types::{ObjectCannedAcl, ServerSideEncryption, StorageClass},
};
use clap::Args;
use regex::Regex;
use std::{fmt, str::FromStr, time::Duration};
use url::form_urlencoded;

/// The longest that a signed address of S3 is valid: seven days.
const MAX_SECONDS: u32 = 604_800;
/// S3's limits of tags: how many, and characters of a key and a value.
const MAX_TAGS: usize = 10;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;
/// Longest Cache-Control, in bytes: S3 takes 2 KB of such headers in all.
const MAX_CACHE_CONTROL: usize = 1024;
/// Storage classes from which a picture can be read at once.
const CLASSES: [&str; 6] =
    ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR", "REDUCED_REDUNDANCY"];

/// The pictures in S3.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Storage")]
pub struct ResultConfig {
    /// What `result_url` is: the plain address (public), an address signed for so many seconds, up to 604800 (presigned:SECONDS), or
    /// s3://BUCKET/KEY (s3).
    #[arg(long, env = "EASEL_RESULT_URLS", default_value = "public", value_name = "KIND")]
    pub result_urls: ResultUrls,
    /// The key of a picture: a text with {generation_id}, {style_id}, {number} and {extension}. Without {number}, the second picture of
    /// a task gets _2 in front of the ending, and so on.
    #[arg(
        long,
        env = "EASEL_RESULT_KEY",
        default_value = "generations/gen_{generation_id}.{extension}",
        value_name = "TEMPLATE"
    )]
    pub result_key: KeyTemplate,
    /// The KMS key that encrypts pictures (SSE-KMS): its id, its ARN, or an alias [default: as the bucket encrypts]
    #[arg(long, env = "EASEL_RESULT_KMS_KEY", value_name = "KEY")]
    pub result_kms_key: Option<KmsKey>,
    /// Storage class of pictures: STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING, GLACIER_IR or REDUCED_REDUNDANCY
    /// [default: the bucket's]
    #[arg(long, env = "EASEL_RESULT_STORAGE_CLASS", value_name = "CLASS", value_parser = storage_class)]
    pub result_storage_class: Option<StorageClass>,
    /// Tags of pictures, k=v&k2=v2: ten at most, percent-encoded as in a URL [default: none]
    #[arg(long, env = "EASEL_RESULT_TAGS", value_name = "TAGS")]
    pub result_tags: Option<Tags>,
    /// Cache-Control of pictures, like "private, max-age=3600" [default: none]
    #[arg(long, env = "EASEL_RESULT_CACHE_CONTROL", value_name = "TEXT", value_parser = cache_control)]
    pub result_cache_control: Option<String>,
}

/// What `result_url` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResultUrls {
    /// The plain address.
    #[default]
    Public,
    /// An address that is signed, and valid for this long.
    Presigned(Duration),
    /// `s3://BUCKET/KEY`.
    S3,
}

/// A KMS key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsKey(String);

/// Tags, as S3's header has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags(String);

impl FromStr for ResultUrls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = |seconds: &str| seconds.parse().ok().filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
        match text {
            "public" => Ok(Self::Public),
            "s3" => Ok(Self::S3),
            _ => match text.strip_prefix("presigned:").and_then(seconds) {
                Some(seconds) => Ok(Self::Presigned(Duration::from_secs(seconds.into()))),
                None => Err(format!("must be public, s3, or presigned:SECONDS with 1 to {MAX_SECONDS} seconds")),
            },
        }
    }
}

impl FromStr for KmsKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = r"([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})";
        let alias = r"alias/[A-Za-z0-9/_-]{1,250}";
        let arn = r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:";
        let form =
            Regex::new(&format!("^({id}|{alias}|{arn}(key/{id}|{alias}))$")).map_err(|error| error.to_string())?;
        let wrong = "must be a key's id, alias/NAME, or an ARN like arn:aws:kms:REGION:ACCOUNT:key/ID";
        form.is_match(text).then(|| Self(text.to_string())).ok_or_else(|| wrong.to_string())
    }
}

impl FromStr for Tags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tags: Vec<(String, String)> = Vec::new();
        for pair in text.split('&') {
            if pair.matches('=').count() != 1 {
                return Err("must be k=v pairs with & between them; = and & themselves are %3D and %26".into());
            }
            tags.extend(form_urlencoded::parse(pair.as_bytes()).into_owned());
        }
        let legal = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == ' ' || "+-=._:/@".contains(c));
        for (index, (key, value)) in tags.iter().enumerate() {
            let problem = if !(1..=MAX_TAG_KEY).contains(&key.chars().count()) {
                format!("needs a key of 1 to {MAX_TAG_KEY} characters")
            } else if value.chars().count() > MAX_TAG_VALUE {
                format!("has a value of more than {MAX_TAG_VALUE} characters")
            } else if !legal(key) || !legal(value) {
                "has a character that S3 does not take: letters, digits, spaces and + - = . _ : / @ alone".to_string()
            } else if key.starts_with("aws:") {
                "begins with aws:, which is AWS' own".to_string()
            } else if tags[..index].iter().any(|(other, _)| other == key) {
                "has the key of an earlier one".to_string()
            } else {
                continue;
            };
            return Err(format!("tag {} {problem}", index + 1));
        }
        match tags.len() {
            ..=MAX_TAGS => Ok(Self(form_urlencoded::Serializer::new(String::new()).extend_pairs(tags).finish())),
            count => Err(format!("has {count} tags, S3 takes {MAX_TAGS}")),
        }
    }
}

impl fmt::Display for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn storage_class(text: &str) -> Result<StorageClass, String> {
    if CLASSES.contains(&text) {
        return Ok(StorageClass::from(text));
    }
    Err(format!("must be one of {}: from another a picture cannot be read at once", CLASSES.join(", ")))
}

fn cache_control(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_graphic() || c == ' ') && text.trim() == text;
    if plain && (1..=MAX_CACHE_CONTROL).contains(&text.len()) {
        return Ok(text.to_string());
    }
    Err(format!("must be 1 to {MAX_CACHE_CONTROL} printable characters of ASCII, without spaces at its ends"))
}

impl StoreConfig {
    /// The ACL of a picture: a private one has none.
    pub fn acl(&self) -> ResultAcl {
        let private = self.result.result_urls != ResultUrls::Public;
        self.acl.unwrap_or(if private { ResultAcl::None } else { ResultAcl::PublicRead })
    }

    /// Checks options that depend on each other.
    ///
    /// # Errors
    /// Names both, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let ResultConfig { result_urls, result_kms_key, .. } = &self.result;
        let private = *result_urls != ResultUrls::Public;
        if private && self.acl() == ResultAcl::PublicRead {
            return Err("--result-acl (EASEL_RESULT_ACL) is public-read, so everybody may read what --result-urls \
                (EASEL_RESULT_URLS) keeps private; set it to none, or leave it out"
                .into());
        }
        if private && self.base_url.is_some() {
            return Err(
                "--result-base-url (EASEL_RESULT_BASE_URL) is the base of public addresses; leave it out, or set \
                --result-urls (EASEL_RESULT_URLS) to public"
                    .into(),
            );
        }
        if !private && result_kms_key.is_some() && self.base_url.is_none() {
            return Err("--result-kms-key (EASEL_RESULT_KMS_KEY): S3 shows what KMS encrypts to nobody by a plain address; set \
                --result-urls (EASEL_RESULT_URLS) to presigned:SECONDS or s3, or --result-base-url (EASEL_RESULT_BASE_URL) to what \
                reads the bucket with a role of its own"
                .into());
        }
        Ok(())
    }
}

/// What S3 is told when a picture is stored.
#[derive(Debug, Clone)]
pub(super) struct PutOptions {
    pub(super) acl: ResultAcl,
    pub(super) kms_key: Option<KmsKey>,
    pub(super) class: Option<StorageClass>,
    pub(super) tags: Option<Tags>,
    pub(super) cache_control: Option<String>,
}

impl PutOptions {
    pub(super) fn new(config: &StoreConfig) -> Self {
        let result = &config.result;
        Self {
            acl: config.acl(),
            kms_key: result.result_kms_key.clone(),
            class: result.result_storage_class.clone(),
            tags: result.result_tags.clone(),
            cache_control: result.result_cache_control.clone(),
        }
    }

    /// Adds them to a request.
    pub(super) fn apply(&self, mut put: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        if self.acl == ResultAcl::PublicRead {
            put = put.acl(ObjectCannedAcl::PublicRead);
        }
        if let Some(KmsKey(key)) = &self.kms_key {
            put = put.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key);
        }
        put.set_storage_class(self.class.clone())
            .set_tagging(self.tags.as_ref().map(|Tags(tags)| tags.clone()))
            .set_cache_control(self.cache_control.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Cli;

    #[test]
    fn values_are_taken_as_s3_takes_them_and_others_are_refused() {
        let seconds = |text: &str| text.parse::<ResultUrls>();
        assert_eq!(seconds("presigned:1"), Ok(ResultUrls::Presigned(Duration::from_secs(1))));
        assert_eq!(seconds("presigned:604800"), Ok(ResultUrls::Presigned(Duration::from_secs(604_800))));
        for text in ["", "Public", "presigned", "presigned:", "presigned:0", "presigned:604801", "presigned:1h", "s3:1"]
        {
            assert!(seconds(text).unwrap_err().contains("604800"), "{text}");
        }
        let id = "1234abcd-12ab-34cd-56ef-1234567890ab";
        for key in [
            id,
            "mrk-1234abcd12ab34cd56ef1234567890ab",
            "alias/easel",
            &format!("arn:aws:kms:eu-central-1:123456789012:key/{id}"),
            "arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/a/b",
        ] {
            assert_eq!(key.parse::<KmsKey>().unwrap().to_string(), key);
        }
        for key in
            ["", "easel", "alias/", "1234abcd", &format!("key/{id}"), &format!("arn:aws:s3:eu:123456789012:key/{id}")]
        {
            assert!(key.parse::<KmsKey>().unwrap_err().contains("ARN"), "{key}");
        }
        for (text, header) in [("a=1&b=", "a=1&b="), ("a%20b=%C3%A9+x", "a+b=%C3%A9+x"), ("a%3D=b", "a%3D=b")] {
            assert_eq!(text.parse(), Ok(Tags(header.into())), "{text}");
        }
        let many = |count| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join("&");
        assert!(many(10).parse::<Tags>().is_ok());
        for (text, said) in [
            (String::new(), "k=v pairs"),
            ("a".into(), "k=v pairs"),
            ("a=b=c".into(), "%3D"),
            ("a=1&".into(), "k=v pairs"),
            ("=1".into(), "tag 1 needs a key"),
            ("a=1&a=2".into(), "tag 2 has the key of an earlier one"),
            ("a=1&aws%3Ax=2".into(), "tag 2 begins with aws:"),
            ("a=%3C".into(), "a character that S3 does not take"),
            (format!("{}=1", "k".repeat(129)), "1 to 128"),
            (format!("a={}", "v".repeat(257)), "256"),
            (many(11), "11 tags"),
        ] {
            assert!(text.parse::<Tags>().unwrap_err().contains(said), "{text}");
        }
        assert_eq!(storage_class("STANDARD_IA"), Ok(StorageClass::StandardIa));
        for text in ["", "standard", "GLACIER", "DEEP_ARCHIVE", "OUTPOSTS"] {
            assert!(storage_class(text).unwrap_err().contains("INTELLIGENT_TIERING"), "{text}");
        }
        assert!(cache_control("private, max-age=3600").is_ok());
        for text in ["", " a", "a ", "a\nb", "ä", &"x".repeat(1025)] {
            assert!(cache_control(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused_and_both_are_named() {
        let load = |more: &[&str]| {
            let least = ["handler", "function", "--model", "m", "--internal-api-token", "t"];
            Cli::load(least.iter().chain(more)).map(drop).map_err(|error| error.to_string())
        };
        let (key, signed) = (["--result-kms-key", "alias/easel"], ["--result-urls", "presigned:60"]);
        let (acl, base) = (["--result-acl", "public-read"], ["--result-base-url", "https://pictures.example.org"]);
        assert_eq!(load(&[]), Ok(()));
        assert_eq!(load(&signed), Ok(()));
        assert_eq!(load(&[key, signed].concat()), Ok(()));
        assert_eq!(load(&[key, base].concat()), Ok(()));
        for (arguments, names) in [
            ([signed, acl], ["EASEL_RESULT_ACL", "EASEL_RESULT_URLS"]),
            ([signed, base], ["EASEL_RESULT_BASE_URL", "EASEL_RESULT_URLS"]),
            ([key, ["--result-urls", "public"]], ["EASEL_RESULT_KMS_KEY", "EASEL_RESULT_URLS"]),
        ] {
            let error = load(&arguments.concat()).unwrap_err();
            assert!(names.iter().all(|name| error.contains(name)), "{error}");
        }
    }
}
