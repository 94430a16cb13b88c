//! Warnings about prompts of which the text encoder reads a part only.

use crate::{
    engine::GenerationRequest,
    task::{Code, Warning},
};
use diffusion::{cut, error::PipelineError, pipeline::Pipeline};

/// The longest tag that a warning shows, in bytes.
const MAX_TAG: usize = 100;

/// What of a request's prompts does not count, because it is behind the last token that the text encoder reads. Nothing, if
/// they may be long. The pipeline has the request's textual inversions.
///
/// # Errors
/// A weight in a prompt that is no number.
pub(super) fn cut_prompts(pipeline: &Pipeline, request: &GenerationRequest) -> Result<Vec<Warning>, PipelineError> {
    let GenerationRequest { inputs, tag_ends, .. } = request;
    let mut warnings = Vec::new();
    if inputs.long_prompt {
        return Ok(warnings);
    }
    let (counted, rest) = pipeline.count_tokens(inputs, "prompt_tags", &inputs.prompt)?;
    if rest > 0 {
        // Brackets may be open at the end of a tag; then what comes before it has the same tokens.
        let fits = |end: &usize| {
            let tags = inputs.prompt.get(..*end).unwrap_or_default();
            pipeline.count_tokens(inputs, "prompt_tags", tags).is_ok_and(|(_, rest)| rest == 0)
        };
        let whole = tag_ends.partition_point(fits);
        warnings.push(Warning::new(Code::PromptCut, prompt_cut(&inputs.prompt, tag_ends, whole, (counted, rest))));
    }
    let (counted, rest) = pipeline.count_tokens(inputs, "negative_prompt", &inputs.negative_prompt)?;
    if rest > 0 {
        let all = counted + rest;
        let message = format!("`negative_prompt` has {all} tokens, of which the first {counted} count");
        warnings.push(Warning::new(Code::NegativePromptCut, message));
    }
    Ok(warnings)
}

/// `whole` of the tags count whole.
fn prompt_cut(prompt: &str, tag_ends: &[usize], whole: usize, (counted, rest): (usize, usize)) -> String {
    let tokens = format!("the prompt has {} tokens, of which the first {counted} count", counted + rest);
    let tag = |index: usize| {
        let from = index.checked_sub(1).map_or(0, |before| tag_ends[before] + 1);
        cut(prompt.get(from..tag_ends[index]).unwrap_or_default(), MAX_TAG)
    };
    match (tag_ends.len(), whole.checked_sub(1)) {
        (0, _) => tokens,
        (all, Some(last)) => {
            format!("{tokens}: the last tag that counts whole is number {whole} of {all}, `{}`", tag(last))
        }
        (_, None) => format!("{tokens}: no tag counts whole, the first, `{}`, in part", tag(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffusion::{
        pipeline::{Compute, Request},
        prompt::Weighting,
    };

    fn warnings(pipeline: &Pipeline, tags: &[String], negative: &str, weighting: Weighting) -> Vec<Warning> {
        let ends = tags.iter().scan(0, |end, tag| {
            *end += tag.len() + 1;
            Some(*end - 1)
        });
        let inputs =
            Request { negative_prompt: negative.into(), prompt_weighting: weighting, ..Request::new(tags.join(" ")) };
        let request = GenerationRequest { tag_ends: ends.collect(), ..GenerationRequest::new(inputs, 1) };
        cut_prompts(pipeline, &request).unwrap()
    }

    #[test]
    fn the_last_tag_that_counts_is_named() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/easel-tiny");
        let pipeline = Pipeline::load(model.as_ref(), &Compute::Cpu, (64, 64)).unwrap();
        let (_, rest) = pipeline.count_tokens(&Request::new(""), "prompt_tags", "cat").unwrap();
        assert_eq!(rest, 0);
        // One token each, but the last of them.
        let words = |count: usize| vec!["cat".to_string(); count];
        assert_eq!(warnings(&pipeline, &words(75), "cat", Weighting::None), []);
        let last = |tags: &[String], weighting| {
            let warnings = warnings(&pipeline, tags, "", weighting);
            assert_eq!(warnings.len(), 1);
            assert_eq!(warnings[0].code, Code::PromptCut);
            warnings[0].message.clone()
        };
        let mut tags = words(74);
        tags.extend(["red house".to_string(), "sea".to_string()]);
        let message = "the prompt has 77 tokens, of which the first 75 count: the last tag that counts whole is number 74 of 76, `cat`";
        assert_eq!(last(&tags, Weighting::None), message);
        // Brackets are no tokens as weights, also across tags.
        tags[73] = "(dog".into();
        tags[74] = "house:1.2)".into();
        let message = "the prompt has 76 tokens, of which the first 75 count: the last tag that counts whole is number 75 of 76, `house:1.2)`";
        assert_eq!(last(&tags, Weighting::A1111), message);
        let long = vec!["cat ".repeat(80).trim().to_string()];
        assert!(last(&long, Weighting::None).contains("no tag counts whole, the first, `cat cat"));
        let negative = warnings(&pipeline, &words(1), &"cat ".repeat(80), Weighting::None);
        assert_eq!(negative.len(), 1);
        assert_eq!(negative[0].message, "`negative_prompt` has 80 tokens, of which the first 75 count");
        let inputs =
            Request { long_prompt: true, negative_prompt: "cat ".repeat(80), ..Request::new("cat ".repeat(80)) };
        assert_eq!(cut_prompts(&pipeline, &GenerationRequest::new(inputs, 1)).unwrap(), []);
    }
}
