use super::*;
use nanochat_gpu::ops::latent::{self, Chunks, Gathered};
use nanochat_gpu::ops::lm_loss::IGNORE;
use nanochat_gpu::tensor::{Scale, noise};

#[test]
fn cases() {
    check(verify::heads::latent);
}

#[test]
fn chunks_on_devices() {
    check_on_all(verify::heads::chunks_on);
}

fn words(tensor: &Tensor) -> Vec<u32> {
    tensor.as_slice::<u32>().to_vec()
}

/// Two rows of 11 tokens; in the first, documents of 5, 1 and 5 tokens.
#[test]
fn chunks_are_whole_and_counted_from_their_documents_start() {
    let arena = Arena::new(1 << 16).unwrap();
    let chunks = Chunks { t: 11, first: 0, every: 1 };
    let tokens: Vec<u32> = (100..122).collect();
    let starts: Vec<u32> = [0, 0, 0, 0, 0, 5, 6, 6, 6, 6, 6].into_iter().chain([0; 11]).collect();
    let gather = |starts: Option<&[u32]>| {
        let starts = starts.map(|starts| ids(&arena, starts));
        chunks.gather(&arena, &ids(&arena, &tokens), starts.as_ref(), None, 0.9)
    };
    let Gathered { tokens: read, targets, kept } = gather(Some(&starts));
    let second = [111, 112, 113, 114, 115, 116, 117, 118];
    assert_eq!(words(&targets), [&[100, 101, 102, 103, 106, 107, 108, 109], &second[..]].concat());
    assert_eq!((words(&read), words(&kept)), (words(&targets), words(&targets)));
    // A third slot would begin at 8 and end beyond the row.
    assert_eq!(chunks.per_row(), 2);
    let whole = gather(None);
    assert_eq!(words(&whole.targets), [&[100, 101, 102, 103, 104, 105, 106, 107], &second[..]].concat());
    // A slot between documents has none.
    let starts: Vec<u32> = [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9].into_iter().chain([0; 11]).collect();
    let none = gather(Some(&starts));
    assert_eq!(words(&none.targets), [&[IGNORE; 8], &second[..]].concat());
    assert_eq!(words(&none.tokens), [&[0; 8], &second[..]].concat());
    assert_eq!(chunks.counted(22, Some(&starts)), 2);
    assert_eq!(chunks.counted(22, None), 4);
    let every_second = Chunks { first: 1, every: 2, ..chunks };
    let selected = every_second.gather(&arena, &ids(&arena, &tokens), None, None, 0.0);
    assert_eq!(words(&selected.targets), [104, 105, 106, 107, 115, 116, 117, 118]);
}

/// Every chunk that a walk over the documents finds is in one slot, and no other is.
#[test]
fn slots_hold_all_chunks() {
    for seed in 0..50 {
        let t = 30 + seed % 7;
        let lengths = verify::integers(&format!("lengths {seed}"), t, 11);
        let (mut starts, mut want) = (vec![], vec![]);
        for length in lengths {
            let (start, length) = (starts.len(), (length as usize + 1).min(t - starts.len()));
            starts.extend(vec![start as u32; length]);
            want.extend((0..length / 4).map(|chunk| (start + 4 * chunk) as u32));
        }
        let arena = Arena::new(1 << 16).unwrap();
        let tokens: Vec<u32> = (0..t as u32).collect();
        let chunks = Chunks { t, first: 0, every: 1 };
        let gathered = chunks.gather(&arena, &ids(&arena, &tokens), Some(&ids(&arena, &starts)), None, 0.0);
        let found: Vec<u32> = words(&gathered.targets).chunks(4).map(|c| c[0]).filter(|&c| c != IGNORE).collect();
        assert_eq!(found, want, "{starts:?}");
        assert_eq!(chunks.counted(t, Some(&starts)), want.len());
    }
}

#[test]
fn noise_drops_tokens_and_latents_at_its_rate_and_anew_for_each_seed() {
    let arena = Arena::new(1 << 22).unwrap();
    let (m, l) = (500, 64);
    let tokens = ids(&arena, &verify::integers("noise tokens", 4 * m, 50));
    let chunks = Chunks { t: 4 * m, first: 0, every: 1 };
    let seeded = |seed: f64| Scale::from(seed);
    let kept = |seed: f64| words(&chunks.gather(&arena, &tokens, None, Some(&seeded(seed)), 0.15).kept);
    let share = |dropped: usize, of: usize| dropped as f64 / of as f64;
    let dropped = kept(3.0).iter().filter(|&&id| id == IGNORE).count();
    assert!((share(dropped, 4 * m) - 0.15).abs() < 0.03);
    assert!(kept(3.0) == kept(3.0) && kept(3.0) != kept(4.0));
    let h = tensor(&arena, DType::F64, [m, 2 * l], &vec![0.5; 2 * m * l]);
    let options = latent::Options { rate: 0.15, floor: 0.5, weight: 1.0 };
    let draw = |noise: Option<Scale>| {
        let targets = tokens.reshape([m, 4]);
        let (z, kl) = latent::sample(&arena, &latent::Saved { h: h.clone(), targets, noise, options });
        (z.to_f64(), kl.to_f64())
    };
    let (z, kl) = draw(Some(seeded(3.0)));
    assert!((share(z.iter().filter(|&&z| z == 0.0).count(), m * l) - 0.15).abs() < 0.01);
    // Mean and spread of what is drawn, through the factor that makes up for what is dropped.
    let drawn: Vec<f64> = z.iter().filter(|&&z| z != 0.0).map(|z| 0.85 * z).collect();
    let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
    let spread = (drawn.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / drawn.len() as f64).sqrt();
    assert!((mean - 0.5).abs() < 0.03 && (spread - 0.5f64.exp()).abs() < 0.03, "{mean} {spread}");
    let divergence = 0.5 * (0.25 + 1f64.exp() - 1.0) - 0.5;
    assert!(kl.iter().all(|kl| (kl - 64.0 * divergence.max(0.5)).abs() < 1e-9));
    assert!(draw(None).0.iter().all(|&z| z == 0.5));
}

/// Quantiles of the normal distribution from tables: at 1 %, 25 %, 50 %, 97.5 % and 99.99 %.
#[test]
fn quantiles() {
    for (p, want) in [(0.01, -2.326348), (0.25, -0.674490), (0.5, 0.0), (0.975, 1.959964), (0.9999, 3.719016)] {
        let word = (p * 2f64.powi(32)) as u32;
        // Words have 2^23 places, which lie far apart in the tails.
        let density = f64::exp(-0.5 * want * want) / std::f64::consts::TAU.sqrt();
        assert!((noise::normal::<f64>(word) - want).abs() < 1e-5 + 2f64.powi(-23) / density, "{p}");
        assert!((f64::from(noise::normal::<f32>(word)) - noise::normal::<f64>(word)).abs() < 3e-6);
    }
    assert!(noise::normal::<f32>(u32::MAX).is_finite() && noise::normal::<f32>(0) == -noise::normal::<f32>(u32::MAX));
}

#[test]
fn moments_and_rates() {
    let n = 40_000;
    let draws: Vec<f64> = (0..n).map(|i| noise::normal(noise::words(3, 1, i)[0])).collect();
    let moment = |power: i32| draws.iter().map(|x| x.powi(power)).sum::<f64>() / f64::from(n);
    assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.15);
    let kept = (0..n).filter(|&i| noise::is_kept(noise::words(3, 2, i)[1], 0.15)).count() as f64 / f64::from(n);
    assert!((kept - 0.85).abs() < 0.01, "{kept}");
    assert!((0..n).all(|i| noise::is_kept(noise::words(3, 2, i)[1], 0.0)));
    assert_ne!(noise::words(3, 1, 0), noise::words(4, 1, 0));
}
