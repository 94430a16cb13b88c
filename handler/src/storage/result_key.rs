//! Where a task's pictures are stored: keys by a template. The same task gets the same keys in every process, because they say whether it
//! was painted already.

use crate::task::{MAX_IMAGES, Task};
use std::str::FromStr;

/// S3's limit, in bytes.
const MAX_KEY: usize = 1024;
/// Folders of the same bucket that have another meaning.
const TAKEN: [&str; 2] = ["claims/", "cancelled/"];
/// Punctuation that stands in a URL as it does in a key.
const PUNCTUATION: &str = "/!-_.*'()=";
const FIELDS: &str = "{generation_id}, {style_id}, {number} and {extension}";

/// A template of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    GenerationId,
    StyleId,
    /// Of the picture in its task, from 1 on.
    Number,
    Extension,
}

impl KeyTemplate {
    /// The keys of a task's pictures, in their order. Without `{number}` the second and later ones get `_2`, `_3` and so on in front of
    /// the file's ending.
    pub fn keys(&self, task: &Task) -> Vec<String> {
        let extension = task.format.extension();
        (1..=task.num_images).map(|number| self.key(task.generation_id, task.style_id, number, extension)).collect()
    }

    fn key(&self, generation_id: i64, style_id: i64, number: usize, extension: &str) -> String {
        let mut key = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => key.push_str(text),
                Part::GenerationId => key.push_str(&generation_id.to_string()),
                Part::StyleId => key.push_str(&style_id.to_string()),
                Part::Number => key.push_str(&number.to_string()),
                Part::Extension => key.push_str(extension),
            }
        }
        if number > 1 && !self.0.contains(&Part::Number) {
            let name = key.rfind('/').map_or(0, |slash| slash + 1);
            let end = key[name..].rfind('.').map_or(key.len(), |dot| name + dot);
            key.insert_str(end, &format!("_{number}"));
        }
        key
    }

    /// The folder that all keys are in, with a slash at its end; empty if there is none.
    pub(super) fn folder(&self) -> &str {
        match self.0.first() {
            Some(Part::Text(text)) => &text[..text.rfind('/').map_or(0, |slash| slash + 1)],
            _ => "",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (plain, field) = rest.split_once('{').map_or((rest, None), |(plain, field)| (plain, Some(field)));
            if let Some(odd) = plain.chars().find(|c| !c.is_ascii_alphanumeric() && !PUNCTUATION.contains(*c)) {
                return Err(format!("has {odd:?}, must have letters and digits of ASCII and {PUNCTUATION} alone"));
            }
            if !plain.is_empty() {
                parts.push(Part::Text(plain.to_string()));
            }
            let Some(field) = field else { break };
            let (name, after) = field.split_once('}').ok_or("has a { without its }")?;
            parts.push(match name {
                "generation_id" => Part::GenerationId,
                "style_id" => Part::StyleId,
                "number" => Part::Number,
                "extension" => Part::Extension,
                _ => return Err(format!("has a field {{{name}}}, must have no others than {FIELDS}")),
            });
            rest = after;
        }
        Ok(Self(parts))
    }
}

impl Default for KeyTemplate {
    /// As in the Python worker.
    fn default() -> Self {
        let text = |text: &str| Part::Text(text.to_string());
        Self(vec![text("generations/gen_"), Part::GenerationId, text("."), Part::Extension])
    }
}

impl FromStr for KeyTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let template = Self::parse(text)?;
        if !template.0.contains(&Part::GenerationId) {
            return Err("has no {generation_id}: pictures of different tasks would replace each other".into());
        }
        let is_number = |part: &Part| matches!(part, Part::GenerationId | Part::StyleId | Part::Number);
        if template.0.windows(2).any(|pair| pair.iter().all(is_number)) {
            return Err(
                "has two numbers side by side: put a character between them, or 1 and 23 is the same as 12 and 3"
                    .into(),
            );
        }
        let longest = template.key(i64::MAX, i64::MAX, MAX_IMAGES as usize, "jpeg");
        if longest.len() > MAX_KEY {
            return Err(format!("makes keys of up to {} bytes, S3 takes {MAX_KEY}", longest.len()));
        }
        // The first picture's: a number at the end would hide a slash there.
        if template.key(0, 0, 1, "jpg").split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err("must have no / at an end, no // and no . or .. between slashes".into());
        }
        match TAKEN.iter().find(|folder| longest.starts_with(**folder)) {
            Some(folder) => Err(format!("begins with {folder}, where the service keeps other objects")),
            None => Ok(template),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(template: &str) -> Vec<String> {
        let template: KeyTemplate = template.parse().unwrap();
        (1..=2).map(|number| template.key(500, 10, number, "jpg")).collect()
    }

    #[test]
    fn the_default_is_the_seeds_and_others_say_where_everything_stands() {
        assert_eq!("generations/gen_{generation_id}.{extension}".parse(), Ok(KeyTemplate::default()));
        for (template, expected) in [
            ("generations/gen_{generation_id}.{extension}", ["generations/gen_500.jpg", "generations/gen_500_2.jpg"]),
            ("{generation_id}", ["500", "500_2"]),
            ("v1.2/{generation_id}", ["v1.2/500", "v1.2/500_2"]),
            ("style={style_id}/{generation_id}-{number}.{extension}", ["style=10/500-1.jpg", "style=10/500-2.jpg"]),
        ] {
            assert_eq!(keys(template), expected, "{template}");
        }
        assert_eq!(KeyTemplate::default().folder(), "generations/");
        assert_eq!("a/b/{generation_id}/c".parse::<KeyTemplate>().unwrap().folder(), "a/b/");
        assert_eq!("{generation_id}/a".parse::<KeyTemplate>().unwrap().folder(), "");
    }

    #[test]
    fn a_template_that_could_mix_up_pictures_or_makes_no_key_is_refused() {
        let long = format!("{}{{generation_id}}", "x".repeat(1010));
        for (template, said) in [
            ("", "no {generation_id}"),
            ("gen_{style_id}.jpg", "no {generation_id}"),
            ("{generation_id}{style_id}", "two numbers side by side"),
            ("{generation_id}_{date}", "{date}"),
            ("{generation_id", "{ without its }"),
            ("a}{generation_id}", "'}'"),
            ("a b/{generation_id}", "' '"),
            ("ä/{generation_id}", "'ä'"),
            ("a?{generation_id}", "'?'"),
            ("/{generation_id}", "no / at an end"),
            ("{generation_id}/", "no / at an end"),
            ("a//{generation_id}", "no // "),
            ("../{generation_id}", ".."),
            ("claims/gen_{generation_id}", "claims/"),
            ("cancelled/{generation_id}", "cancelled/"),
            (long.as_str(), "S3 takes 1024"),
        ] {
            let error = template.parse::<KeyTemplate>().unwrap_err();
            assert!(error.contains(said), "{template}: {error}");
        }
    }
}
