//! One macro for the sets of bits the kernel speaks: a `u64` newtype with named constants and set operations.

/// Defines a set of bits: constants, `contains`, `names`, `|`, `&`, `-` and a `Debug` that prints the names.
macro_rules! bit_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// No bit at all.
            pub const NONE: Self = Self(0);
            $($(#[$bit_doc])* pub const $bit: Self = Self($value);)*
            /// Every bit this crate has a name for, in the order of the kernel.
            pub const NAMED: &'static [(&'static str, Self)] = &[$((stringify!($bit), Self($value)),)*];

            /// The bits as a number.
            #[inline]
            pub const fn bits(self) -> u64 {
                self.0
            }

            /// True when every bit of `other` is set here.
            #[inline]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// True when no bit is set.
            #[inline]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Both sets together; `|`, but usable in constants.
            #[inline]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits set here that `other` lacks.
            #[inline]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// Names of the set bits, lowest first; a bit without a name does not appear.
            pub fn names(self) -> Vec<&'static str> {
                Self::NAMED.iter().filter(|(_, bit)| self.contains(*bit)).map(|(name, _)| *name).collect()
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            #[inline]
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::ops::BitOrAssign for $name {
            #[inline]
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
            }
        }

        impl std::ops::BitAnd for $name {
            type Output = Self;
            #[inline]
            fn bitand(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }
        }

        impl std::ops::Sub for $name {
            type Output = Self;
            #[inline]
            fn sub(self, other: Self) -> Self {
                self.without(other)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let named = Self::NAMED.iter().fold(0, |all, (_, bit)| all | bit.0);
                let unnamed = self.0 & !named;
                write!(f, concat!(stringify!($name), "({})"), self.names().join("|"))?;
                if unnamed == 0 { Ok(()) } else { write!(f, "+{unnamed:#x}") }
            }
        }
    };
}

pub(crate) use bit_set;

#[cfg(test)]
mod tests {
    bit_set!(
        /// Two bits for the test.
        Pair {
            /// low
            LOW = 1,
            /// high
            HIGH = 2,
        }
    );

    #[test]
    fn set_operations_follow_the_bits() {
        let both = Pair::LOW | Pair::HIGH;
        assert!(both.contains(Pair::LOW) && !Pair::LOW.contains(both));
        assert_eq!(both - Pair::LOW, Pair::HIGH);
        assert_eq!(both & Pair::HIGH, Pair::HIGH);
        assert!(Pair::NONE.is_empty() && both.bits() == 3);
        assert_eq!(both.names(), ["LOW", "HIGH"]);
        assert_eq!(format!("{:?}", Pair(5)), "Pair(LOW)+0x4");
    }
}
