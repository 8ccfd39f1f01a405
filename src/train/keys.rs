//! The keys of a run's configuration, and named sets of values.

/// Every key and what it means: `--help` of the configuration, and what unknown keys are compared with.
pub const KEYS: &[(&str, &str)] = &[
    ("model.depth", "layers, and everything that follows from them"),
    ("model.layers", "number of blocks"),
    ("model.width", "width of the stream"),
    ("model.heads", "query heads"),
    ("model.kv_heads", "key/value heads; divides heads"),
    ("model.head_dim", "width of a head; even"),
    ("model.ffn_width", "feed-forward width; 8/3 of width, rounded up to a multiple of 64"),
    ("model.vocab_size", "tokens of the model; at least those of the tokenizer"),
    ("model.max_seq_len", "longest context, up to 16,384"),
    ("model.rope_theta", "base of the rotary frequencies"),
    ("model.norm_eps", "added to the mean square in RMSNorm"),
    ("model.qk_norm", "norm queries and keys"),
    ("model.tie_embeddings", "use the token table as LM head"),
    ("model.layer_pattern", "A (attention) or K (Kimi Delta Attention) per layer, repeated, such as KKKA"),
    ("model.window_pattern", "S (sliding window) or L per layer, repeated"),
    ("model.window", "tokens that a layer marked S sees"),
    ("model.softcap", "soft-cap of the logits, 0 for none"),
    ("model.document_mask", "attend inside a document only"),
    ("train.steps", "length of the schedule"),
    ("train.batch_tokens", "tokens of an optimiser step"),
    ("train.seq_len", "tokens of a row"),
    ("train.rows", "rows of a micro-batch"),
    ("train.optimizer", "adamw or muon"),
    ("train.lr_scale", "multiplies every learning rate"),
    ("train.warmup_steps", "steps of linear warm-up"),
    ("train.cooldown_fraction", "share of the steps in which the rate falls to 5 %"),
    ("train.clip", "largest norm of the gradient"),
    ("train.weight_decay", "on matrices; the optimiser's own default if not given"),
    ("train.seed", "of initial values and data order"),
    ("train.eval_every", "steps between evaluations, 0 for only at the end"),
    ("train.eval_tokens", "tokens of an evaluation"),
    ("train.save_every", "steps between checkpoints, 0 for only at the end"),
    ("train.keep", "newest checkpoints to keep"),
    ("train.sample_every", "steps between samples, 0 for only at the end"),
    ("train.recompute", "recompute blocks in backward instead of saving them"),
    ("train.threads", "threads, 0 for all cores"),
    ("train.spike_sigma", "a loss or gradient this many deviations above its mean is skipped, 0 for never"),
    ("train.bad_steps_max", "skipped steps in a row that end the run"),
    ("data.sources", "list of data specs"),
    ("data.val_fraction", "share held out for validation"),
    ("data.tokenizer", "folder of a tokenizer; one is trained on the data if not given"),
    ("data.vocab_size", "size of the tokenizer that is trained"),
    ("data.packing", "bos or stream; stream by default with a memory"),
    ("device.kind", "auto, cpu, sim or cuda[:i]"),
    ("device.dtype", "auto, f32 or bf16"),
    ("device.sim", "how the simulator watches: checked or fast"),
    ("device.graph", "record a GPU's step once and replay it"),
    ("loss.lm.weight", "weight of the language-model loss"),
    ("loss.concept.weight", "weight of the concept head's loss"),
    ("loss.concept.rho", "share of its gradient that reaches the trunk, 0 for a probe"),
    ("loss.entropy.weight", "weight of the entropy of the hypercube's codes"),
    ("loss.entropy.rho", "share of its gradient that reaches the trunk, 0 for a probe"),
    ("loss.self_model.weight", "weight of the self-model's loss"),
    ("loss.self_model.rho", "share of its gradient that reaches the trunk, 0 for a probe"),
    ("loss.reconstruction.weight", "weight of the latent's loss, which gives the trunk no gradient"),
    ("loss.score.weight", "weight of the energy score of generated latents"),
    ("loss.score.rho", "share of its gradient that reaches the trunk, 0 for a probe"),
    ("loss.energy.weight", "weight of the energy head's contrast and of the retrieval"),
    ("loss.energy.rho", "share of its gradient that reaches the trunk, 0 for a probe"),
    ("psyche.enabled", "blend the stages Id, Ego and Superego by weights of each token"),
    ("psyche.source", "what the weights are computed from: superego, id, or static (three weights for all tokens)"),
    ("hypercube.enabled", "let Id's stream pass near a vertex of a hypercube"),
    ("hypercube.bits", "bits of a vertex, up to 16"),
    ("hypercube.tau_start", "sharpness of the codes in their entropy when training begins"),
    ("hypercube.tau_end", "the same when it ends"),
    ("concept.enabled", "predict the bag of concepts that come soon"),
    ("concept.count", "number of concepts; a token's is its id modulo this"),
    ("concept.codes", "learned, or hypercube: fixed vertices of 16 bits, near where neighbours in the data are alike"),
    ("concept.rank", "width of a learned code"),
    ("concept.window", "tokens that come soon, from the one after next"),
    ("concept.every", "tokens from one prediction to the next"),
    ("concept.feedback", "add the scores of concepts to the logits, by a factor that begins at 0"),
    (
        "memetic.enabled",
        "let Ego's stream read a bank of memes, of which a few are replaced by offspring of others now and then",
    ),
    ("memetic.memes", "number of memes"),
    ("memetic.key_width", "width of a meme's key"),
    ("memetic.top", "memes that a token reads, up to 32"),
    ("memetic.period", "steps from one generation of memes to the next"),
    ("memetic.share", "largest share of the memes that a generation replaces"),
    ("memetic.islands", "ranges of memes that breed among themselves"),
    ("memetic.selection", "fitness, or a control: random, shuffled"),
    (
        "self_model.enabled",
        "foretell from Ego's stream Superego's state, the token's loss, and whether the likeliest token is wrong",
    ),
    ("self_model.width", "width of its hidden layer"),
    ("latent.enabled", "learn a continuous latent of chunks of four tokens, beside the trunk"),
    ("latent.width", "width of its encoder and decoder; half the model's, at most 256, where it is not given"),
    ("latent.every", "one of so many chunks is worked on"),
    ("latent.dropout", "share of tokens, and of latents, that are dropped in training"),
    ("abacus.enabled", "read and write a state that goes on from segment to segment of a text"),
    ("abacus.heads", "matrices of the state"),
    ("abacus.key_dim", "width of their keys; a multiple of 32"),
    ("abacus.value_dim", "width of their values; a multiple of 32"),
    ("abacus.segments", "rows of a micro-batch that go on with each other; divides train.rows"),
    (
        "memory.enabled",
        "keep a row of each finished segment of a text, and let later ones read the rows that are like them",
    ),
    ("memory.rows", "rows that are kept; the newest takes the place of the oldest"),
    ("memory.key_width", "width of a row's key, up to 256"),
    ("memory.top", "rows that a token reads, up to 32"),
    ("memory.segment", "tokens of a segment of a conversation: train.seq_len"),
    ("energy.enabled", "generate the next chunk's latent, and score how well a latent goes on; needs latent.enabled"),
    ("energy.width", "width of the generator"),
    ("digits.enabled", "tell each digit its place in its number; the tokenizer that is trained splits digits singly"),
    ("digits.ids", "the tokens that are one digit; found in the tokenizer"),
    ("psyche.exit_threshold", "a decode step ends after Id above this weight of Id, 1 for never; needs source id"),
];

/// Every part.
const FULL: &str = "
[psyche]
enabled = true
[concept]
enabled = true
[hypercube]
enabled = true
[memetic]
enabled = true
[self_model]
enabled = true
[latent]
enabled = true
[abacus]
enabled = true
[memory]
enabled = true
[energy]
enabled = true
[digits]
enabled = true
";

/// A name for a set of values.
pub const PRESETS: &[(&str, &str)] = &[
    ("demo", "[model]\ndepth = 3\n[train]\nsteps = 150\nbatch_tokens = 4096\nrows = 16\nseq_len = 256\n"),
    ("full", FULL),
    ("shakespeare", "[model]\ndepth = 4\n[train]\nsteps = 1000\nbatch_tokens = 4096\nrows = 16\nseq_len = 256\n"),
];
