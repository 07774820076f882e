//! Random numbers that are a function of what they are for.

/// 2^64 divided by the golden ratio, made odd: the step of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", with
/// the constants of Stafford's variant 13): every bit of the answer depends on every bit of `word`.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A number in [0, 1), a multiple of 2^-53: output `index` of the SplitMix64 generator whose state is mixed from
/// `seed` and `choice`. No state is kept, so a sequence that is computed again draws the same tokens again.
pub(super) fn uniform(seed: u64, choice: u32, index: u32) -> f64 {
    let after = |word: u64, count: u32| word.wrapping_add(STEP.wrapping_mul(u64::from(count) + 1));
    let state = mix(after(mix(after(seed, 0)), choice));
    (mix(after(state, index)) >> 11) as f64 / (1_u64 << 53) as f64
}
