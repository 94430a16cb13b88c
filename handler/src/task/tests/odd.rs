//! Messages that few JSON parsers accept, or none: what is ignored, which errors there are, and which backend is notified.

use super::*;

/// The seed's task as text, with more members at the end.
fn and(members: &str) -> String {
    let task = seed_task().to_string();
    format!("{},{members}}}", task.strip_suffix('}').unwrap())
}

fn deep(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn unknown_fields_are_ignored_whatever_they_hold() {
    let fields = [
        r#""new": "\ud83d""#.to_string(),
        r#""new": "\udc00 \ud800""#.into(),
        r#""\ud83d": 1"#.into(),
        r#""new": {"\udc00": ["\ud83d", 1e400]}"#.into(),
        r#""new": 1e400"#.into(),
        r#""new": -1E+99999999999999999999"#.into(),
        format!(r#""new": {}"#, "9".repeat(5000)),
        format!(r#""new": {}"#, deep(130)),
        format!(r#""new": {}"#, deep(200_000)),
        format!(r#""new": {}1{}"#, r#"{"x":"#.repeat(130), "}".repeat(130)),
        "\"new\": \"\u{feff}\"".into(),
        r#""signature": {"new": "\ud83d", "newer": 1e400}"#.into(),
        format!(r#""loras": [{{"lora_model_url": "s3://bucket/k", "new": {}}}]"#, deep(130)),
    ];
    for field in fields {
        let shown: String = field.chars().take(60).collect();
        let task = Task::parse(&and(&field)).unwrap_or_else(|invalid| panic!("{shown}: {invalid}"));
        assert_eq!(task.generation_id, 500, "{shown}");
    }
}

#[test]
fn a_byte_order_mark_before_the_message_is_ignored() {
    for marks in ["\u{feff}", "\u{feff}\u{feff}", "\u{feff} \n"] {
        assert_eq!(Task::parse(&format!("{marks}{}", seed_task())).unwrap().generation_id, 500);
    }
}

#[test]
fn values_that_json_parsers_cannot_hold_are_errors_in_known_fields() {
    let digits = "9".repeat(100);
    let cases = [
        (format!(r#""seed": {digits}"#), "`seed` is an integer of 100 digits, must be an integer from -"),
        (format!(r#""seed": -{digits}"#), "`seed` is an integer of 100 digits, must be an integer from -"),
        (r#""seed": 18446744073709551616"#.into(), "`seed` is 18446744073709551616, must be an integer from -"),
        (r#""seed": 1e2"#.into(), "`seed` is a number with an exponent, must be an integer from -"),
        (r#""seed": 1.0"#.into(), "`seed` is a fraction, must be an integer from -"),
        (r#""guidance_scale": 1e400"#.into(), "`guidance_scale` is 1e400, must be a number from 0 to 50"),
        (
            format!(r#""guidance_scale": {digits}"#),
            "`guidance_scale` is an integer of 100 digits, must be a number from 0",
        ),
        (format!(r#""guidance_scale": 0.{digits}e9"#), "`guidance_scale` is a number of 102 digits, must be"),
        (
            r#""negative_prompt": "\ud83d""#.into(),
            "`negative_prompt` is a string with half of a surrogate pair, must be a string of at most 10000 characters",
        ),
        (r#""artist_name": "Ada \udc00""#.into(), "`artist_name` is a string with half of a surrogate pair, must be"),
        (r#""prompt_tags": ["cat", "\ud83d"]"#.into(), "`prompt_tags[1]` is a string with half of a surrogate pair"),
        (r#""scheduler": "\ud83dx""#.into(), "`scheduler` is a string with half of a surrogate pair"),
        (format!(r#""loras": {}"#, deep(130)), "`loras[0]` is an array, must be an object"),
        (format!(r#""signature": {}"#, deep(130)), "`signature` is an array, must be an object"),
        (format!(r#""style_id": {}"#, deep(200_000)), "`style_id` is an array, must be an integer"),
        (
            format!(r#""loras": [{}{{}}]"#, r#"{"":0},"#.repeat(100_000)),
            "`loras` is an array of 100001, must be an array of at most 7 objects",
        ),
        (
            format!(r#""prompt_tags": [{}""]"#, r#""x","#.repeat(100_000)),
            "`prompt_tags` is an array of 100001, must be an array of 1 to 100 strings",
        ),
        (
            format!(r#""lora_weights": {{"unet": {{"up": {{{}"block_1": 2}}}}}}"#, r#""x":0,"#.repeat(100_000)),
            "`lora_weights.unet.up` is an object with a member of another name, must be an object of no more than blocks by their names, \
             like block_1",
        ),
        (
            r#""lora_weights": {"unet": {"down": {"block_1": [1, "x"]}}}"#.into(),
            "`lora_weights.unet.down.block_1[1]` is a string, must be a number from -10 to 10",
        ),
        (
            r#""loras": [{"lora_model_url": "s3://bucket/k", "weights": {"unet": {"mid": [1, 1]}}}]"#.into(),
            "`loras[0].weights.unet.mid` is an array of 2, must be a number from -10 to 10 or an array of 1 to 1 of them",
        ),
        (
            r#""lora_weights": {"unet": {"\ud83d": 1}}"#.into(),
            "`lora_weights.unet` is an object with a member of another name, must be an object of no more than down, mid, up",
        ),
    ];
    for (field, expected) in cases {
        let invalid = Task::parse(&and(&field)).unwrap_err();
        assert!(invalid.reason.starts_with(expected), "`{}` does not begin with `{expected}`", invalid.reason);
        assert_eq!((invalid.generation_id, invalid.webhook_url.is_some()), (Some(500), true), "{expected}");
    }
}

/// Two ways to write the same, and of two members with one name the last.
#[test]
fn weights_by_block_are_read_as_diffusers_takes_them() {
    let weights =
        |text: &str| Task::parse(&and(&format!(r#""lora_weights": {text}"#))).unwrap().loras[0].weights.to_string();
    for (text, places) in [
        ("{}", ""),
        (r#"{"unet": null, "text_encoder": 0.5}"#, "text_encoder: 0.5"),
        (r#"{"unet": -1}"#, "unet: -1"),
        (
            r#"{"unet": {"down": 0, "mid": [2], "up": [1, 0.5, 0]}}"#,
            "unet.down: 0, unet.mid: 2, unet.up[0]: 1, unet.up[1]: 0.5, unet.up[2]: 0",
        ),
        (
            r#"{"unet": {"down": {"block_1": [3], "block_0": [1, 2]}}}"#,
            "unet.down.block_0[0]: 1, unet.down.block_0[1]: 2, unet.down.block_1: 3",
        ),
        (r#"{"unet": {"mid": 1, "mid": 2}}"#, "unet.mid: 2"),
        (r#"{"unet": 1, "unet": {"up": {"block_9": null}}}"#, ""),
    ] {
        assert_eq!(weights(text), places, "{text}");
    }
}

#[test]
fn an_integer_may_be_written_as_minus_zero() {
    assert_eq!(Task::parse(&and(r#""seed": -0"#)).unwrap().seed, 0);
}

#[test]
fn the_backend_can_be_notified_if_id_and_address_are_readable() {
    let invalid = with("generation_id", json!(-7)).unwrap_err();
    assert_eq!(invalid.generation_id, Some(-7));
    let invalid = Task::parse(&and(r#""generation_id": 7e0"#)).unwrap_err();
    assert_eq!((invalid.generation_id, invalid.webhook_url.is_some()), (Some(7), true));
    for body in ["", "{", "[]", "\"x\"", "{}", "\u{feff}"] {
        let invalid = Task::parse(body).unwrap_err();
        assert_eq!((invalid.generation_id, invalid.webhook_url), (None, None), "{body}");
    }
}

#[test]
fn id_and_address_are_found_in_a_message_that_is_no_json() {
    let task = seed_task().to_string();
    let end = task.strip_suffix('}').unwrap();
    let python = task.replace('"', "'").replace(':', ": ");
    let python = python.replace("http: ", "http:").replace("s3: ", "s3:").replace("backend: ", "backend:");
    let cases = [
        (end.to_string(), "it ends too early, at line 1 column "),
        (format!("{end},\"negative_prompt\": \"a hat, \\\"x"), "it ends too early, at line 1 column "),
        (format!("{end},}}"), "key must be a string at line 1 column "),
        (format!("{task}}}"), "trailing characters at line 1 column "),
        (format!("{task}{task}"), "trailing characters at line 1 column "),
        (and("\"x\": NaN"), "expected "),
        (and("\"x\": 01"), "invalid number at line 1 column "),
        (and("\"negative_prompt\": \"a\nb\""), "control character (\\u0000-\\u001F) found while parsing a string"),
        (and("\"x\": \"\\x41\""), "invalid escape at line 1 column "),
        (and("\u{feff}\"x\": 1"), "a byte order mark (U+FEFF) stands at line 1 column "),
        (and("\"x\": \u{feff}1"), "a byte order mark (U+FEFF) stands at line 1 column "),
        (format!("{task}\u{feff}"), "a byte order mark (U+FEFF) stands at line 1 column "),
        (format!("{{ \u{feff}{}", &task[1..]), "a byte order mark (U+FEFF) stands at line 1 column 3"),
        (task.replace("\":", "\"\u{a0}:\u{feff}"), "expected `:`"),
        (python, "key must be a string at line 1 column 2"),
    ];
    for (body, expected) in cases {
        let invalid = Task::parse(&body).unwrap_err();
        let expected = format!("the message is no JSON: {expected}");
        assert!(invalid.reason.starts_with(&expected), "`{}` does not begin with `{expected}`", invalid.reason);
        assert_eq!(invalid.generation_id, Some(500), "{body}");
        assert!(invalid.webhook_url.is_some_and(|url| url.as_str().starts_with("http://backend")), "{body}");
    }
}

#[test]
fn id_and_address_are_never_guessed() {
    let (id, url) = ("\"generation_id\": 500", "\"webhook_url\": \"http://backend\"");
    let both = format!("{id}, {url}");
    let cases = [
        // The id may go on.
        (format!("{{{url}, {id}"), (None, true)),
        (format!("{{{id}, \"webhook_url\": \"http://back"), (Some(500), false)),
        (format!("{{{both}, \"generation_id\": 501, x}}"), (None, true)),
        (format!("{{{both}, \"webhook_url\": \"http://other\", x}}"), (Some(500), false)),
        (format!("{{{both}, x}}{{\"generation_id\": 501, x}}"), (None, true)),
        (format!("{{{both}, x}} {{{both}}}"), (Some(500), true)),
        // Nested.
        (format!("{{\"x\": {{{both}}}, x}}"), (None, false)),
        (format!("{{\"x\": [{both}], x}}"), (None, false)),
        (format!("[{{{both}}}, x]"), (None, false)),
        (format!("[{both}, x]"), (None, false)),
        (both.to_string(), (None, false)),
        (format!("{{\"x\": \"{{\\\"generation_id\\\": 7}}\", {both}, x}}"), (Some(500), true)),
        // A quote is missing, so that inside and outside of strings are swapped.
        (format!("{{\"x\": \"y, \"z\": \", \\\"generation_id\\\": 7, {both}\"}}"), (None, false)),
        (format!("{{\"generation_id\": \"500\", {url}, x}}"), (None, true)),
        (format!("{{\"generation_id\": 500.5, {url}, x}}"), (None, true)),
        (format!("{{\"generation_id\": {}, {url}, x}}", "9".repeat(100)), (None, true)),
        (format!("{{{id}, \"webhook_url\": \"ftp://backend\", x}}"), (Some(500), false)),
        (format!("{{{id}, \"webhook_url\": \"http:\\/\\/backend\", x}}"), (Some(500), true)),
        (format!("{{{id}, \"webhook_url\": \"\\ud83d\", x}}"), (Some(500), false)),
    ];
    for (body, (generation_id, address)) in cases {
        let invalid = Task::parse(&body).unwrap_err();
        assert_eq!(
            (invalid.generation_id, invalid.webhook_url.is_some()),
            (generation_id, address),
            "{body}: {invalid}"
        );
    }
}
