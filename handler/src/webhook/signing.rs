//! Signatures of webhooks by standardwebhooks.com, version 1: HMAC-SHA256 over id, time and body.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::{fmt, str::FromStr};

/// Prefix of every secret.
const PREFIX: &str = "whsec_";

/// The secrets that sign, in the order in which their signatures are sent. There are two while the backend rotates its secret.
#[derive(Clone, Default)]
pub struct WebhookSecrets(Vec<Vec<u8>>);

impl WebhookSecrets {
    /// The value of `webhook-signature`; `None` if there is no secret.
    pub fn sign(&self, id: &str, timestamp: u64, body: &str) -> Option<String> {
        let signed = format!("{id}.{timestamp}.{body}");
        let signature = |key: &Vec<u8>| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
            mac.update(signed.as_bytes());
            Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        };
        let signatures: Vec<String> = self.0.iter().filter_map(signature).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

impl FromStr for WebhookSecrets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(|character: char| character == ',' || character.is_whitespace());
        let key = |word: &str| {
            let key = STANDARD.decode(word.strip_prefix(PREFIX)?).ok()?;
            (24..=64).contains(&key.len()).then_some(key)
        };
        let keys: Option<Vec<_>> = words.filter(|word| !word.is_empty()).map(key).collect();
        let keys = keys.filter(|keys| !keys.is_empty());
        keys.map(Self).ok_or_else(|| "must be whsec_ and 24 to 64 bytes in base64, or several of these".into())
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Secret, id, time, body and signature of the specification's own example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: u64 = 1_614_265_330;
    const BODY: &str = r#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const OTHER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

    fn sign(secrets: &str) -> String {
        secrets.parse::<WebhookSecrets>().unwrap().sign(ID, TIME, BODY).unwrap()
    }

    #[test]
    fn the_signature_is_that_of_the_specifications_example() {
        assert_eq!(sign(SECRET), SIGNATURE);
        let secrets: WebhookSecrets = SECRET.parse().unwrap();
        let others = [("msg_x", TIME, BODY), (ID, TIME + 1, BODY), (ID, TIME, r#"{"test":2432232314}"#)];
        for (id, time, body) in others {
            assert_ne!(secrets.sign(id, time, body).unwrap(), SIGNATURE);
        }
        assert_ne!(sign(OTHER), SIGNATURE);
        assert_eq!(WebhookSecrets::default().sign(ID, TIME, BODY), None);
    }

    #[test]
    fn several_secrets_sign_in_their_order() {
        for separator in [" ", ",", ", ", "\n"] {
            let both = format!("{OTHER}{separator}{SECRET}");
            assert_eq!(sign(&both), format!("{} {SIGNATURE}", sign(OTHER)));
        }
    }

    #[test]
    fn unusable_secrets_are_refused_and_none_is_shown() {
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        let cases = ["", " ", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%", &long];
        for text in cases {
            let error = text.parse::<WebhookSecrets>().unwrap_err();
            assert!(text.trim().is_empty() || !error.contains(&text[6..]) || text == "whsec_", "{error}");
        }
        assert_eq!(format!("{:?}", SECRET.parse::<WebhookSecrets>().unwrap()), "<redacted>");
    }
}
