//! The parts that draws are made of.

use super::{bell, noise};
use crate::generation::sampling::candidates::Candidate;
use crate::generation::sampling::peaks::Peaks;
use crate::generation::sampling::weights::{Scale, Weights};

#[test]
fn weights_are_powers_of_e() {
    let by_two = Scale::new(0.0, std::f32::consts::LOG2_E);
    assert_eq!(by_two.weight(0.0), 1.0);
    assert_eq!(by_two.weight(-0.0), 1.0);
    assert_eq!(by_two.weight(-3.0), 0.125);
    assert_eq!(by_two.weight(-125.5), 0.0);
    assert_eq!(by_two.weight(f32::MIN), 0.0);
    assert_eq!(by_two.weight(f32::NEG_INFINITY), 0.0);
    let by_e = Scale::new(0.0, 1.0);
    for logit in noise(1, 200_000).map(|noise| -(noise * noise * 86.0) as f32) {
        let error = f64::from(by_two.weight(logit)) / f64::from(logit).exp2() - 1.0;
        assert!(error.abs() < 5e-7, "2^{logit} is off by {error}");
        let error = f64::from(by_e.weight(logit)) / f64::from(logit).exp() - 1.0;
        assert!(error.abs() < 5e-7 + 2e-7 * f64::from(-logit), "e^{logit} is off by {error}");
    }
}

#[test]
fn weights_and_their_total_are_those_of_each_token() {
    for vocabulary in [1, 7, 127, 128, 129, 1_000] {
        let row = bell(4, vocabulary, 2.0);
        let scale = Scale::new(7.0, 0.8);
        let mut weights = Weights::default();
        weights.fill(&bell(5, 2_000, 1.0), scale);
        weights.fill(&row, scale);
        let expected: Vec<f32> = row.iter().map(|&logit| scale.weight(logit)).collect();
        assert_eq!(weights.each(), expected);
        let total: f64 = expected.iter().map(|&weight| f64::from(weight)).sum();
        assert!((weights.total() / total - 1.0).abs() < 1e-14);
    }
}

#[test]
fn the_peak_bound_is_reached_by_as_many_tokens() {
    for vocabulary in [1, 300, 5_000] {
        let row = bell(6, vocabulary, 2.0);
        let mut peaks = Peaks::default();
        peaks.scan(&row).expect("logits");
        assert_eq!(peaks.greatest(), row.iter().copied().fold(f32::MIN, f32::max));
        for count in [1, 2, 3, 20, 39, 40, 41] {
            let bound = peaks.reached_by(count);
            let reach = row.iter().filter(|&&logit| logit >= bound).count();
            assert!(reach >= count.min(vocabulary), "{reach} of {count} reach {bound}");
        }
    }
}

#[test]
fn peaks_follow_changed_logits() {
    for places in [vec![0, 450], (0..500).collect::<Vec<u32>>()] {
        let mut row = bell(7, 500, 2.0);
        let mut peaks = Peaks::default();
        peaks.scan(&row).expect("logits");
        for &place in &places {
            row[place as usize] -= 50.0;
        }
        row[450] = 9.0;
        peaks.update(&row, places.iter().copied());
        let mut fresh = Peaks::default();
        fresh.scan(&row).expect("logits");
        assert_eq!(peaks.blocks(), fresh.blocks());
        assert_eq!(peaks.likeliest(&row), 450);
    }
}

#[test]
fn keys_order_candidates_by_likelihood_and_then_by_id() {
    let key = |logit: f32, token: u32| Candidate { token, logit, weight: 1.0 }.key();
    let order = [
        key(f32::MAX, 9),
        key(2.0, 1),
        key(2.0, 3),
        key(1e-40, 0),
        key(0.0, 4),
        key(-0.0, 5),
        key(0.0, 6),
        key(-1e-40, 0),
        key(-3.0, 2),
        key(f32::MIN, 0),
        key(f32::NEG_INFINITY, 0),
    ];
    assert!(order.is_sorted(), "{order:?}");
}
