//! The rules as they are written, with the whole vocabulary sorted and every number in double precision.

use crate::generation::sampling::Sampling;

/// The probabilities of the tokens that may be drawn, by id, the others 0. None where a limit is so close to a sum
/// that rounding decides.
pub(super) fn probabilities(
    sampling: &Sampling,
    logits: &[f32],
    prompt: &[u32],
    generated: &[u32],
) -> Option<Vec<f64>> {
    let mut logits = logits.to_vec();
    if generated.len() < sampling.min_tokens as usize {
        for &end in &sampling.end_tokens {
            logits[end as usize] = f32::NEG_INFINITY;
        }
    }
    for &(token, bias) in &sampling.logit_bias {
        logits[token as usize] += bias;
    }
    for (token, logit) in logits.iter_mut().enumerate() {
        let count = generated.iter().filter(|&&other| other as usize == token).count();
        if count > 0 || prompt.contains(&(token as u32)) {
            let penalty = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        *logit -= sampling.frequency_penalty * count as f32;
        *logit -= if count > 0 { sampling.presence_penalty } else { 0.0 };
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&one, &other| {
        logits[other].partial_cmp(&logits[one]).expect("no NaN").then(one.cmp(&other))
    });
    let greatest = f64::from(logits[order[0]]);
    if sampling.temperature == 0.0 {
        order.truncate(1);
    }
    let temperature = if sampling.temperature == 0.0 { 1.0 } else { f64::from(sampling.temperature) };
    let weight = |token: usize| ((f64::from(logits[token]) - greatest) / temperature).exp();
    let least = f64::from(sampling.min_p);
    if order.iter().any(|&token| near(weight(token), least) && weight(token) < 1.0) {
        return None;
    }
    order.retain(|&token| weight(token) >= least);
    order.truncate(sampling.top_k.unwrap_or(u32::MAX) as usize);
    let share = order.iter().map(|&token| weight(token)).sum::<f64>() * f64::from(sampling.top_p);
    let mut sum = 0.0;
    let mut kept = 0;
    while kept < order.len() && (sum < share || kept == 0) {
        let exact = order[..=kept].iter().all(|&token| weight(token) == 1.0 || weight(token) == 0.0);
        sum += weight(order[kept]);
        kept += 1;
        if sampling.top_p < 1.0 && near(sum, share) && !exact {
            return None;
        }
    }
    if sampling.top_p < 1.0 {
        order.truncate(kept);
    }
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for token in order {
        probabilities[token] = weight(token) / total;
    }
    Some(probabilities)
}

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 2e-5 * other
}
