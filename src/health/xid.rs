//! XIDs, the driver's numbers for what went wrong, in classes.

use crate::health::incident::Severity;

/// What an XID asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A program's own fault; the GPU is well.
    Application,
    /// Nothing has to be done.
    Noted,
    /// A program's work was taken off the GPU, for a reason that has its own XID.
    Removed,
    /// Memory was mended: a row was remapped or a page retired.
    Mended,
    /// Memory errs often, if correctably.
    Trend,
    /// An uncorrectable error hit one program and no other.
    Contained,
    /// Only a reset of the GPU helps.
    Reset,
    /// NVLink erred.
    Link,
    /// Only a reboot of the host helps.
    Reboot,
    /// Power, firmware or the driver; a person has to look.
    Firmware,
    /// What the driver advises has changed; a field says to what.
    Advice,
    /// In no list.
    Unknown,
}

impl Class {
    /// Every class there is.
    pub const ALL: [Self; 12] = [
        Self::Application,
        Self::Noted,
        Self::Removed,
        Self::Mended,
        Self::Trend,
        Self::Contained,
        Self::Reset,
        Self::Link,
        Self::Reboot,
        Self::Firmware,
        Self::Advice,
        Self::Unknown,
    ];

    /// The class of an XID, by NVIDIA's catalogue; numbers that it does not have are unknown, the worst
    /// but for a reboot.
    pub fn of(xid: u64) -> Self {
        match xid {
            8
            | 11
            | 13
            | 25
            | 31
            | 32
            | 39..=41
            | 43
            | 60
            | 68..=72
            | 75..=77
            | 80
            | 82..=86
            | 88 => Self::Application,
            89 | 96..=105 | 126..=135 | 139 => Self::Application,
            14 | 37 | 38 | 44 | 66 | 67 | 93 | 106 | 107 | 121 | 137 | 141 | 152 | 153 | 157
            | 161 => Self::Noted,
            45 => Self::Removed,
            63 => Self::Mended,
            92 => Self::Trend,
            94 => Self::Contained,
            46 | 48 | 62 | 64 | 95 | 109 | 110 | 119 | 120 | 136 | 140 | 143 | 155 | 156 | 158
            | 162 => Self::Reset,
            74 | 144..=150 => Self::Link,
            79 | 151 | 160 => Self::Reboot,
            54 | 61 | 78 | 90 | 122..=125 => Self::Firmware,
            154 => Self::Advice,
            _ => Self::Unknown,
        }
    }

    /// The name that configuration has for it, after `xid_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Noted => "noted",
            Self::Removed => "removed",
            Self::Mended => "mended",
            Self::Trend => "trend",
            Self::Contained => "contained",
            Self::Reset => "reset",
            Self::Link => "link",
            Self::Reboot => "reboot",
            Self::Firmware => "firmware",
            Self::Advice => "advice",
            Self::Unknown => "unknown",
        }
    }

    /// How much one XID of the class matters, where its GPU is its worker's only one.
    pub fn severity(self) -> Severity {
        match self {
            Self::Application | Self::Noted | Self::Removed | Self::Mended => Severity::Info,
            Self::Trend | Self::Contained | Self::Link | Self::Advice => Severity::Degraded,
            Self::Reset | Self::Reboot | Self::Firmware | Self::Unknown => Severity::Fatal,
        }
    }

    /// What the operator should do.
    pub fn action(self) -> &'static str {
        match self {
            Self::Application => {
                "nothing, if it stays alone: a program on the GPU erred; look at the engine's log if it \
                 comes again"
            }
            Self::Noted => "nothing",
            Self::Removed => "look at the XID before it, if there is one",
            Self::Mended => "nothing; reset the GPU when convenient if remap_pending is open too",
            Self::Trend => "watch it; run `dcgmi diag -r 3` when the GPU can be spared",
            Self::Contained => {
                "nothing: other programs are untouched, and the engine is restarted if it no longer answers"
            }
            Self::Reset => "stop what uses the GPU and reset it: `nvidia-smi -r -i UUID`",
            Self::Link => "reset the GPUs of the link; if it comes again, have it repaired",
            Self::Reboot => {
                "reboot the host, as a reset cannot help; have the GPU replaced if it comes again"
            }
            Self::Firmware => {
                "check the power cable, update driver and firmware, and report it to NVIDIA"
            }
            Self::Advice => "what field 230 then says, shown as recovery_action",
            Self::Unknown => {
                "look it up in NVIDIA's list of XIDs; set gpu.severities for it if it is harmless"
            }
        }
    }

    /// Whether several of them in a short time are no accident any more.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Application | Self::Contained)
    }
}

/// NVIDIA's words for the XIDs that are met most.
pub fn meaning(xid: u64) -> Option<&'static str> {
    let meaning = match xid {
        13 => "graphics engine exception",
        31 => "page fault of the GPU's memory",
        43 => "GPU stopped processing",
        45 => "work removed early",
        48 => "uncorrectable error of memory",
        62 => "internal microcontroller halted",
        63 => "memory remapped or retired",
        64 => "memory not remapped or retired",
        74 => "NVLink error",
        79 => "GPU has fallen off the bus",
        92 => "many corrected errors of memory",
        94 => "contained error of memory",
        95 => "uncontained error of memory",
        119 | 120 => "GPU system processor failed",
        140 => "unrecovered error of memory",
        154 => "recovery action changed",
        _ => return None,
    };
    Some(meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_has_the_class_that_the_catalogue_gives_it() {
        let rows: [(Class, &[u64]); 11] = [
            (
                Class::Application,
                &[
                    8, 11, 13, 25, 31, 32, 39, 40, 41, 43, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80,
                    82, 83, 84, 85, 86, 88, 89, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105, 126,
                    127, 128, 129, 130, 131, 132, 133, 134, 135, 139,
                ],
            ),
            (
                Class::Noted,
                &[
                    14, 37, 38, 44, 66, 67, 93, 106, 107, 121, 137, 141, 152, 153, 157, 161,
                ],
            ),
            (Class::Removed, &[45]),
            (Class::Mended, &[63]),
            (Class::Trend, &[92]),
            (Class::Contained, &[94]),
            (
                Class::Reset,
                &[
                    46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158, 162,
                ],
            ),
            (Class::Link, &[74, 144, 145, 146, 147, 148, 149, 150]),
            (Class::Reboot, &[79, 151, 160]),
            (Class::Firmware, &[54, 61, 78, 90, 122, 123, 124, 125]),
            (Class::Advice, &[154]),
        ];
        for (class, xids) in rows {
            let found: Vec<u64> = (0..=300).filter(|&xid| Class::of(xid) == class).collect();
            assert_eq!(found, xids, "{class:?}");
        }
        assert_eq!(Class::of(172), Class::Unknown);
        assert_eq!(Class::of(u64::MAX), Class::Unknown);
    }
}
