//! The `skb->mark` bits one instance owns.

use std::{fmt, str::FromStr};

use tproxy_common::defaults;

/// `VALUE/MASK`. The steer mark is VALUE; the own mark is VALUE with one more bit of MASK set, the lowest of those
/// that VALUE leaves clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    value: u32,
    mask: u32,
}

impl Mark {
    /// Bits 28 and 29: left alone by Kubernetes, Cilium, Tailscale and Docker.
    pub const DEFAULT: Self = Self { value: defaults::MARK, mask: defaults::MARK_MASK };

    /// # Errors
    /// Says what is wrong when the pair cannot hold two distinct non-zero marks.
    pub fn new(value: u32, mask: u32) -> Result<Self, String> {
        if value & !mask != 0 {
            return Err(format!("the value {value:#x} has bits outside the mask {mask:#x}"));
        }
        if value == 0 || value == mask {
            return Err(format!(
                "the value {value:#x} must set at least one bit of the mask {mask:#x} and leave one clear, \
                 which tells our own sockets' packets from steered ones; write, for instance, {}",
                Self::DEFAULT
            ));
        }
        Ok(Self { value, mask })
    }

    /// What tc sets on a packet that policy routing is to deliver locally.
    #[must_use]
    pub const fn steer(self) -> u32 {
        self.value
    }

    /// `SO_MARK` of every socket we create.
    #[must_use]
    pub const fn own(self) -> u32 {
        let clear = self.mask & !self.value;
        self.value | (clear & clear.wrapping_neg())
    }

    /// What packets that land on `lo` bear where the steer mark does not do: neither that, nor the own mark.
    #[must_use]
    pub(crate) const fn landing(self) -> u32 {
        self.mask & !self.value
    }

    /// Whether a packet with this mark is delivered locally.
    #[must_use]
    pub const fn is_steered(self, mark: u32) -> bool {
        mark & self.mask == self.steer()
    }

    /// The bits compared.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.mask
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// Bits of a mark that somebody else's rules go by: those of the mask are set to the value, all others are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bits {
    value: u32,
    mask: u32,
}

impl Bits {
    /// # Errors
    /// Says what is wrong when no bits are meant, or others than those of the mask.
    pub fn new(value: u32, mask: u32) -> Result<Self, String> {
        if mask == 0 || value & !mask != 0 {
            return Err(format!(
                "the mask {mask:#x} must have a bit set, and all that the value {value:#x} has"
            ));
        }
        Ok(Self { value, mask })
    }

    /// A mark with these bits in it.
    #[must_use]
    pub const fn over(self, mark: u32) -> u32 {
        mark & !self.mask | self.value
    }

    /// Whether some of them are those by which an instance knows its own.
    #[must_use]
    pub const fn meet(self, mark: Mark) -> bool {
        self.mask & mark.mask != 0
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (value, mask) = pair(text, "0x1/0xff")?;
        Self::new(value, mask)
    }
}

/// Two numbers, of which each may be hexadecimal.
fn pair(text: &str, example: impl fmt::Display) -> Result<(u32, u32), String> {
    let number = |part: &str| {
        part.strip_prefix("0x")
            .map_or_else(|| part.parse(), |hex| u32::from_str_radix(hex, 16))
            .map_err(|_| format!("'{part}' is not a 32-bit number"))
    };
    let (value, mask) = text.split_once('/').ok_or_else(|| format!("write VALUE/MASK, such as {example}"))?;
    Ok((number(value)?, number(mask)?))
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (value, mask) = pair(text, Self::DEFAULT)?;
        Self::new(value, mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steer_and_own_differ_within_the_mask() {
        let mark = Mark::DEFAULT;
        assert_eq!(mark.steer(), 0x2000_0000);
        assert_eq!(mark.own(), 0x3000_0000);
        assert_eq!(mark.to_string().parse(), Ok(mark));
        let lowest_set = Mark::new(0x1, 0x7).unwrap();
        assert_eq!((lowest_set.steer(), lowest_set.own()), (0x1, 0x3));
    }

    #[test]
    fn bits_leave_all_others_of_a_mark() {
        let bits: Bits = "0x12/0xff".parse().unwrap();
        assert_eq!(bits.over(0x3000_0ab0), 0x3000_0a12);
        assert!(!bits.meet(Mark::DEFAULT) && Bits::new(0, 0x3000_0000).unwrap().meet(Mark::DEFAULT));
        for text in ["1", "2/1", "0/0", "x/1"] {
            assert!(text.parse::<Bits>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_hold_two_marks_is_refused() {
        for text in ["1/1", "0/3", "3/3", "4/3", "x/3", "2", "2/0x"] {
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }
}
