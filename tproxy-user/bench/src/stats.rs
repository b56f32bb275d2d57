//! What a few samples say.

/// The middle of the samples, or halfway between the two in the middle; `None` of none.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) })
}

/// The smallest and the largest; `None` of none.
pub(super) fn spread(samples: &[f64]) -> Option<(f64, f64)> {
    Some((samples.iter().copied().min_by(f64::total_cmp)?, samples.iter().copied().max_by(f64::total_cmp)?))
}

/// How far the samples are apart, as a part of their median.
pub(super) fn variation(samples: &[f64]) -> Option<f64> {
    let (least, most) = spread(samples)?;
    Some((most - least) / median(samples)?)
}

/// The sample below which `part` (0 to 1) of the sorted samples are: the nearest rank.
pub(super) fn percentile(sorted: &[u32], part: f64) -> Option<u32> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_even_and_no_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn spread_and_variation() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 3.0)));
        assert_eq!(variation(&[3.0, 1.0, 2.0]), Some(1.0));
        assert_eq!((spread(&[]), variation(&[])), (None, None));
    }

    #[test]
    fn percentiles_are_samples() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!(
            [0.0, 0.5, 0.99, 0.999, 1.0].map(|part| percentile(&sorted, part).unwrap()),
            [1, 500, 990, 999, 1000]
        );
        assert_eq!(percentile(&[7], 0.5), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
