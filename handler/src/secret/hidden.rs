//! A secret on the command line.

use clap::{
    Arg, Command,
    builder::TypedValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::{ffi::OsStr, marker::PhantomData, str::FromStr};

/// Reads a secret's value. The message of clap's own parser would show what cannot be used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hidden<T>(PhantomData<T>);

/// The parser of a value that its errors do not show.
pub(crate) fn hidden<T>() -> Hidden<T> {
    Hidden(PhantomData)
}

impl<T: FromStr<Err = String> + Clone + Send + Sync + 'static> TypedValueParser for Hidden<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let parsed = value.to_str().ok_or_else(|| "must be UTF-8".to_string()).and_then(str::parse);
        parsed.map_err(|reason| {
            let name = argument.map(ToString::to_string).unwrap_or_default();
            let text = format!("the value of {name} {reason}\n");
            let mut error = clap::Error::raw(ErrorKind::InvalidValue, text).with_cmd(command);
            error.insert(ContextKind::InvalidArg, ContextValue::String(name));
            error
        })
    }
}
