use super::*;
use std::process::{Command as Process, Stdio};

const REQUIRED: [&str; 3] = ["relay", "--amqp-url=amqp://u:secret@h", "--sqs-queue-url=http://h/q"];

fn load(extra: &[&str]) -> Result<Option<Config>, ConfigError> {
    Config::load(REQUIRED.iter().chain(extra))
}

#[test]
fn the_defaults_are_as_documented() {
    let config = load(&[]).unwrap().unwrap();
    assert_eq!(config.queue, "image_generation");
    assert_eq!(config.dead_letter_exchange(), "image_generation.dead-letter");
    assert_eq!((config.prefetch, config.linger_ms, config.shutdown_timeout), (100, 20, 25));
    assert_eq!(config.prefetch_bytes, 134_217_728);
    assert_eq!((config.max_in_flight, config.is_fifo()), (16, false));
    assert_eq!((&config.message_group_id, &config.message_deduplication_id), (&None, &None));
    assert_eq!(config.attributes, attributes::DEFAULT.parse().unwrap());
    assert_eq!(config.health_addr.to_string(), "127.0.0.1:9100");
    assert_eq!(config.log_format, LogFormat::Json);
    assert!(!config.declare);
}

#[test]
fn a_bad_option_is_named_and_exits_64() {
    let long = "q".repeat(250);
    for (option, value) in [
        ("--prefetch", "0"),
        ("--prefetch", "65536"),
        ("--prefetch", "-1"),
        ("--queue", ""),
        ("--dead-letter-exchange", ""),
        ("--sqs-queue-url", "queue"),
        ("--sqs-queue-url", "ftp://h/q"),
        ("--linger-ms", "60001"),
        ("--sqs-queue-url", "http://h/q.fifo\n"),
        ("--sqs-queue-url", "http://h/q.fifo/"),
        ("--payload-bucket", ""),
        ("--payload-bucket", "pics\n"),
        ("--payload-bucket", "s3://pics"),
        ("--queue", "tasks\n"),
        ("--bind", "tasks:key "),
        ("--health-addr", "9100"),
        ("--max-in-flight", "0"),
        ("--max-in-flight", "257"),
        ("--message-group-id", "style_id"),
        ("--message-group-id", "sha256"),
        ("--message-group-id", ""),
        ("--message-deduplication-id", "json:id"),
        ("--message-deduplication-id", "message-id"),
        ("--attributes", "body"),
        ("--attributes", "type,type"),
        (
            "--attributes",
            "header:1,header:2,header:3,header:4,header:5,header:6,header:7,header:8,header:9,type,app-id",
        ),
        ("--shutdown-timeout", "0"),
        ("--log-format", "xml"),
        ("--amqp-url", "http://u:secret@h"),
        ("--amqp-url", "amqp://u:secret@h:port"),
        ("--amqp-url", "amqp://u:secret@h?heartbeat=x"),
        ("--amqp-url", ""),
        ("--amqp-url", "amqp://u:secret@h,amqp://u:secret@h:port"),
        ("--amqp-ca", "/nowhere/ca.pem"),
        ("--amqp-ca", "Cargo.toml"),
        ("--amqp-client-key", "Cargo.toml"),
        ("--amqp-client-cert", "Cargo.toml"),
        ("--connect-timeout", "0"),
        ("--heartbeat", "0"),
        ("--heartbeat", "65536"),
        ("--queue-type", "stream"),
        ("--bind", "tasks:key"),
        ("--bind", "tasks"),
        ("--nonsense", "amqp://u:secret word@h"),
    ] {
        let mut args: Vec<String> = REQUIRED.iter().map(ToString::to_string).collect();
        args.retain(|arg| !arg.starts_with(option));
        args.push(format!("{option}={value}"));
        let err = Config::load(args).expect_err(value);
        let text = err.to_string();
        assert!(text.contains(option), "{option}={value}: {text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(crate::error::Error::from(err).exit_code(), 64);
    }
    let text = load(&[&format!("--queue={long}")]).unwrap_err().to_string();
    assert!(text.contains("--dead-letter-exchange: has 262 bytes"), "{text}");
}

#[test]
fn every_option_has_a_flag_and_a_variable() {
    let command = Config::command();
    let options: Vec<_> = command.get_arguments().filter(|option| option.get_env().is_some()).collect();
    assert_eq!(options.len(), 26);
    assert!(options.iter().all(|option| option.get_long().is_some()));
    let required = options.iter().filter(|option| option.is_required_set());
    assert_eq!(required.filter_map(|option| option.get_long()).collect::<Vec<_>>(), ["amqp-url", "sqs-queue-url"]);
}

#[test]
fn no_option_takes_a_line_break_at_its_end() {
    let command = Config::command();
    for option in command.get_arguments().filter(|option| option.get_action().takes_values()) {
        let long = option.get_long().unwrap_or_default();
        if FREE.contains(&long) {
            continue;
        }
        for text in ["1\n", "abc\n", "http://h/q\n", "127.0.0.1:80\n", "message-id\n", "a:b\n", "text\n"] {
            let mut args: Vec<String> = REQUIRED.iter().map(ToString::to_string).collect();
            args.retain(|arg| !arg.starts_with(&format!("--{long}=")));
            args.extend(["--declare".to_owned(), format!("--{long}={text}")]);
            let error = Config::load(args).expect_err(long).to_string();
            assert!(error.contains(&format!("--{long}")), "{long} {text:?}: {error}");
        }
    }
    let trimmed = load(&["--attributes= type, app-id\n"]).unwrap().unwrap();
    assert_eq!(trimmed.attributes, "type,app-id".parse().unwrap());
}

#[test]
fn bindings_need_declare_an_exchange_and_a_key() {
    let bind = |value: &str| load(&["--declare", &format!("--bind={value}")]);
    let got = bind("tasks:a.#,other:x:y,fan:").unwrap().unwrap().bindings().unwrap();
    let got: Vec<_> = got.iter().map(|it| (it.exchange.as_str(), it.routing_key.as_str())).collect();
    assert_eq!(got, [("tasks", "a.#"), ("other", "x:y"), ("fan", "")]);
    for bad in ["tasks", ":key", "", "image_generation.dead-letter:key"] {
        assert!(bind(bad).unwrap_err().to_string().contains("--bind"), "{bad}");
    }
    assert!(load(&["--bind=a:b"]).unwrap_err().to_string().contains("--bind: needs --declare"));
}

#[test]
fn a_client_certificate_needs_its_key() {
    let text = load(&["--amqp-client-cert=Cargo.toml"]).unwrap_err().to_string();
    assert!(text.contains("--amqp-client-key: is missing"), "{text}");
    let text = load(&["--amqp-client-key=Cargo.toml"]).unwrap_err().to_string();
    assert!(text.contains("--amqp-client-cert: is missing"), "{text}");
}

#[test]
fn the_password_is_never_shown() {
    let config = load(&[]).unwrap().unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("amqp://***@h") && !shown.contains("secret"), "{shown}");
}

#[test]
fn bash_can_read_the_completions_and_finds_the_options_in_them() {
    let matches = command().try_get_matches_from([NAME, COMPLETIONS, "bash"]).unwrap();
    let script = completions(&matches).unwrap();
    let mut bash = Process::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&script).unwrap();
    assert!(bash.wait().unwrap().success());
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains("--sqs-queue-url") && script.contains("--check") && script.contains(COMPLETIONS));
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = std::env::temp_dir().join(format!("relay-man-{}", std::process::id()));
    let load = |folder: &std::path::Path| Config::load([NAME.as_ref(), MAN.as_ref(), folder.as_os_str()]);
    assert!(load(&folder).unwrap().is_none());
    let page = std::fs::read_to_string(folder.join("relay.1")).unwrap();
    assert!(page.contains("AMQP_URL") && page.contains("EXIT CODES"), "{page}");
    let below = folder.join("relay-man.1");
    assert!(below.is_file() && folder.join("relay-completions.1").is_file());
    let text = load(&below).unwrap_err().to_string();
    assert!(text.contains("relay-man.1: the manual pages cannot be written"), "{text}");
    std::fs::remove_dir_all(folder).unwrap();
}
