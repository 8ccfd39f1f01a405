//! What can be said to a chat with a slash.

use super::{Chat, Stats};
use crate::cli::output::note;
use crate::infer::Sampler;
use crate::model::psyche::STAGES;
use crate::tokenizer::Message;
use crate::{user_bail, user_error};
use serde_json::json;
use std::ops::ControlFlow;

/// What can be said with a slash.
const HELP: &str = "\
/reset           begin anew          /system TEXT  begin anew, and tell the model this first
/temp X          temperature         /top-p X  /top-k N  /min-p X  /seed N
/save FILE       keep the messages   /load FILE    go on from there
/psyche id=+1    lean on a stage     /stats        speed and context
/help            this                /exit         end, as Ctrl-D
A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of several lines. Ctrl-C stops an answer.";

impl Chat<'_> {
    /// A command, without its slash.
    pub(super) fn command(&mut self, text: &str) -> anyhow::Result<ControlFlow<()>> {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let mut options = *self.sampler.options();
        match name {
            "help" => note(HELP),
            "exit" | "quit" => return Ok(ControlFlow::Break(())),
            "reset" => {
                let system =
                    self.messages.first().filter(|first| first.role == "system").map(|m| m.content.to_string());
                self.begin(system.as_deref())?;
            }
            "system" => self.begin(Some(rest).filter(|text| !text.is_empty()))?,
            "temp" | "temperature" => options.temperature = number(name, rest)?,
            "top-p" => options.top_p = Some(number(name, rest)?),
            "top-k" => options.top_k = Some(number(name, rest)?),
            "min-p" => options.min_p = Some(number(name, rest)?),
            "seed" => {
                options.seed = number(name, rest)?;
                self.answers = 0;
            }
            "save" => self.save(rest)?,
            "load" => self.load(rest)?,
            "psyche" => self.lean(rest)?,
            "stats" => self.stats(),
            other => user_bail!("/{other} is no command; /help lists them"),
        }
        self.sampler = Sampler::new(options)?;
        Ok(ControlFlow::Continue(()))
    }

    fn save(&self, file: &str) -> anyhow::Result<()> {
        if file.is_empty() {
            user_bail!("/save needs the name of a file");
        }
        let text = serde_json::to_vec_pretty(&json!({ "messages": self.messages }))?;
        crate::formats::checkpoint::replace_file(file.as_ref(), &text)
    }

    fn load(&mut self, file: &str) -> anyhow::Result<()> {
        let bytes = std::fs::read(file).map_err(|error| user_error!("cannot read {file}: {error}"))?;
        let mut value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| user_error!("{file} is no saved conversation: {error}"))?;
        let messages: Vec<Message> = serde_json::from_value(value["messages"].take())
            .map_err(|error| user_error!("{file} is no saved conversation: {error}"))?;
        self.begin(None)?;
        self.messages = messages;
        note(&format!("({} messages)", self.messages.len()));
        Ok(())
    }

    fn lean(&mut self, assignments: &str) -> anyhow::Result<()> {
        if !self.engine.config().parts.psyche.enabled {
            user_bail!("the model has no PsycheController");
        }
        let parts: Vec<String> = assignments.split(',').map(str::to_owned).filter(|part| !part.is_empty()).collect();
        let lean = crate::cli::sample::lean(&parts)?;
        self.engine.lean(lean);
        note(&format!(
            "({})",
            STAGES.iter().zip(lean).map(|(s, x)| format!("{s} {x:+}")).collect::<Vec<_>>().join(", ")
        ));
        Ok(())
    }

    fn stats(&self) {
        let context = self.engine.context();
        let used = self.held.as_ref().map_or(0, |held| held.tokens().len());
        let mut line = format!("context {used} of {context} tokens");
        if let Some(stats) = self.last {
            let Stats { prompt_tokens, read_tokens, tokens, first_seconds, .. } = stats;
            let read_per_second = read_tokens as f64 / first_seconds.max(1e-9);
            line += &format!(
                "; last answer: {tokens} tokens, {:.1} tokens/s; prompt of {prompt_tokens} tokens, {read_tokens} of them read \
                 ({read_per_second:.0} tokens/s), first token after {first_seconds:.2} s",
                stats.tokens_per_second()
            );
        }
        note(&line);
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> anyhow::Result<T> {
    text.parse().map_err(|_| user_error!("/{name} needs a number, not {text:?}"))
}
