//! The dead-letter queue of a run: what is in there is not lost, if it has its reason with it.
//!
//! Refuses to look where no message may be buried: then one that is counts as lost.

use super::{Fault, script::Stage};
use anyhow::{Context, Error, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::BasicConsumeOptions,
    types::{AMQPValue, FieldTable},
};
use std::{convert::Infallible, future::pending};

const REASON: &str = "x-relay-reason";
/// The only one that the faults here can give.
const REJECTED: &str = "rejected-by-sqs";

impl Stage<'_> {
    /// Notes every message that is buried, and ends only with an error.
    pub(super) async fn graves(&self) -> Error {
        if self.options.fault != Fault::SqsSenderFault {
            return pending().await;
        }
        match self.dig().await {
            Ok(never) => match never {},
            Err(err) => err.context("dead-letter queue"),
        }
    }

    async fn dig(&self) -> Result<Infallible> {
        let connection = Connection::connect(&self.publishing.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let queue = format!("{}.dead-letter", self.options.name);
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut letters =
            channel.basic_consume(queue.as_str().into(), "ledger".into(), options, FieldTable::default()).await?;
        while let Some(letter) = letters.next().await {
            let letter = letter?;
            ensure!(is_rejected(&letter), "a letter without its reason");
            self.tally.bury(std::str::from_utf8(&letter.data).context("a letter that is no text")?);
        }
        bail!("the consumer was cancelled")
    }
}

fn is_rejected(letter: &Delivery) -> bool {
    let headers = letter.properties.headers().as_ref();
    let reason = headers.and_then(|headers| headers.inner().get(REASON));
    matches!(reason, Some(AMQPValue::LongString(text)) if text.as_bytes() == REJECTED.as_bytes())
}
