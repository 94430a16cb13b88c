//! A batch request to SQS of which some entries fail: they are taken out, the rest is carried out, and the answer names both.

use crate::proxy::{Request, Target};
use anyhow::{Context, Result};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// What SQS says of an entry that it did not take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) code: &'static str,
    pub(crate) sender_fault: bool,
}

/// Passes a batch on without the entries at the places that `fails` picks.
///
/// # Errors
/// It is no batch, or the target does not answer.
pub(crate) async fn withhold(
    target: &Target,
    mut request: Request,
    refused: Refused,
    fails: impl Fn(usize) -> bool,
) -> Result<Response> {
    let mut batch: Value = serde_json::from_slice(&request.body)?;
    let entries = batch["Entries"].as_array_mut().context("no Entries")?;
    let Refused { code, sender_fault } = refused;
    let (mut failed, mut passing) = (Vec::new(), Vec::new());
    for (index, entry) in entries.drain(..).enumerate() {
        if fails(index) {
            failed.push(json!({ "Id": entry["Id"], "Code": code, "Message": code, "SenderFault": sender_fault }));
        } else {
            passing.push(entry);
        }
    }
    if passing.is_empty() {
        return Ok(axum::Json(json!({ "Successful": [], "Failed": failed })).into_response());
    }
    *entries = passing;
    request.body = batch.to_string().into();
    let passed = target.pass(request).await?;
    if !passed.status().is_success() {
        return Ok(passed);
    }
    let answer = axum::body::to_bytes(passed.into_body(), usize::MAX).await?;
    let mut answer: Value = serde_json::from_slice(&answer)?;
    match answer["Failed"].as_array_mut() {
        Some(others) => others.extend(failed),
        None => answer["Failed"] = failed.into(),
    }
    Ok(axum::Json(answer).into_response())
}
