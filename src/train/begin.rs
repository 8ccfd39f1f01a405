//! What a run begins with: its data, its parameters, and parts that are switched on in a run that goes on.

use super::config::RunConfig;
use super::optim::Moments;
use super::state;
use crate::data::statistics::Statistics;
use crate::data::{Corpus, LoaderOptions, Split};
use crate::model::{Gpt, ModelConfig, Parts};
use crate::tensor::{Params, Tensor};
use crate::tokenizer::{Codec, Tokenizer};
use crate::{user_bail, user_error};
use std::path::Path;
use std::sync::Arc;

/// The two splits of a run's data.
pub struct Corpora {
    pub train: Corpus,
    pub validation: Corpus,
}

/// Opens the data of `config`, training and validation.
///
/// # Errors
/// What the sources refuse: missing, empty or broken files, too little text.
pub fn open_data(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> anyhow::Result<Corpora> {
    let open = |split: Split| {
        let options = LoaderOptions {
            packing: config.data.packing,
            segments: config.segments(),
            seed: config.train.seed,
            split,
            val_fraction: config.data.val_fraction,
            tokenizer_digest: Some(tokenizer.digest()),
            ..LoaderOptions::new(config.train.rows, config.train.seq_len)
        };
        Corpus::open(&config.data.sources, tokenizer.clone(), options)
    };
    let corpora = Corpora { train: open(Split::Train)?, validation: open(Split::Validation)? };
    corpora.train.packer(None)?.next_batch()?;
    corpora.validation.packer(None)?.next_batch().map_err(|error| {
        user_error!("the validation split is too small ({error:#}); raise data.val_fraction or lower train.rows")
    })?;
    Ok(corpora)
}

/// Fills in what the model has to know of the tokenizer.
///
/// # Errors
/// A tokenizer that does not make every digit a token of its own, where the model counts digits.
pub(super) fn meet_tokenizer(config: &mut RunConfig, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let digits = &mut config.model.parts.digits;
    if !digits.enabled {
        return Ok(());
    }
    let numbers = (0..tokenizer.vocab_size() as u32).filter_map(|id| {
        let bytes = tokenizer.token_bytes(id)?;
        let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
        is_number.then_some((id, bytes.len()))
    });
    let (single, joined): (Vec<_>, Vec<_>) = numbers.partition(|&(_, length)| length == 1);
    if single.len() < 10 || !joined.is_empty() {
        user_bail!(
            "digits.enabled needs a tokenizer that makes every digit a token of its own, and this one has {} single digits and {} joined; \
             name another, let one be trained, or set digits.enabled=false",
            single.len(),
            joined.len()
        );
    }
    digits.ids = single.into_iter().map(|(id, _)| id).collect();
    Ok(())
}

/// The values that a run begins with.
pub(super) fn initial_params(config: &RunConfig, model: &Gpt, corpora: &Corpora) -> anyhow::Result<Params> {
    let mut params = model.init(config.device.dtype, config.train.seed);
    if model.wants_statistics() {
        let statistics = Statistics::gather(&mut corpora.train.packer(None)?, config.model.vocab_size)?;
        model.count(&mut params, &statistics);
    }
    Ok(params)
}

/// Refuses to go on with another model than the checkpoint's; parts may have been switched on since.
pub(super) fn check_same_model(config: &RunConfig, model: &Gpt, dir: &Path, run: &Path) -> anyhow::Result<()> {
    let backbone = |config: &ModelConfig| ModelConfig { parts: Parts::default(), ..config.clone() };
    if backbone(model.config()) != backbone(&config.model) {
        user_bail!("{} holds another model than {}/config.toml describes", dir.display(), run.display());
    }
    if let Some(part) = config.model.parts.lacks(&model.config().parts) {
        user_bail!(
            "{} has a {part} part, which {}/config.toml switches off or changes; put [{part}] back as it was",
            dir.display(),
            run.display()
        );
    }
    Ok(())
}

/// The model with the parts that were switched on since its checkpoint: they begin as in a new run, neutral.
pub(super) fn with_new_parts(
    config: &RunConfig,
    corpora: &Corpora,
    old: Gpt,
    old_params: Params,
    old_moments: Moments,
) -> anyhow::Result<(Gpt, Params, Moments)> {
    let model = Gpt::new(config.model.clone(), config.device.dtype)?;
    let mut params = initial_params(config, &model, corpora)?;
    let mut moments = Moments { updates: old_moments.updates, ..Moments::zeros(&params) };
    let carry = |from: &Tensor, to: &mut Tensor| state::graft(old.layout(), from, model.layout(), to);
    carry(old_params.master(), params.master_mut());
    carry(&old_moments.first, &mut moments.first);
    carry(&old_moments.second, &mut moments.second);
    params.round();
    Ok((model, params, moments))
}
