//! Reads MessagePack front to back without building a tree: what a payload claims never decides
//! how much memory is taken.

/// Why bytes are not MessagePack.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum MsgpackError {
    #[error("payload ends at byte {at} inside a value")]
    Truncated { at: usize },
    #[error("byte {at} is the reserved marker 0xc1")]
    Reserved { at: usize },
}

/// One marker with what belongs to it; the elements of an array or map follow as tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    Nil,
    Bool(bool),
    Uint(u64),
    /// Always below zero.
    Negative(i64),
    Float(f64),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    Array(u32),
    /// So many pairs.
    Map(u32),
    Ext(&'a [u8]),
}

/// A position in a payload.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }

    /// Reads one token.
    ///
    /// # Errors
    /// When the payload ends inside it or its marker is reserved.
    pub fn read(&mut self) -> Result<Token<'a>, MsgpackError> {
        let at = self.at;
        let marker = self.number::<1>()? as u8;
        Ok(match marker {
            0x00..=0x7f => Token::Uint(marker.into()),
            0x80..=0x8f => Token::Map((marker & 0x0f).into()),
            0x90..=0x9f => Token::Array((marker & 0x0f).into()),
            0xa0..=0xbf => Token::Text(self.take((marker & 0x1f).into())?),
            0xc0 => Token::Nil,
            0xc1 => return Err(MsgpackError::Reserved { at }),
            0xc2 | 0xc3 => Token::Bool(marker == 0xc3),
            0xc4 => Token::Bytes(self.sized::<1>(0)?),
            0xc5 => Token::Bytes(self.sized::<2>(0)?),
            0xc6 => Token::Bytes(self.sized::<4>(0)?),
            0xc7 => Token::Ext(self.sized::<1>(1)?),
            0xc8 => Token::Ext(self.sized::<2>(1)?),
            0xc9 => Token::Ext(self.sized::<4>(1)?),
            0xca => Token::Float(f32::from_bits(self.number::<4>()? as u32).into()),
            0xcb => Token::Float(f64::from_bits(self.number::<8>()?)),
            0xcc => Token::Uint(self.number::<1>()?),
            0xcd => Token::Uint(self.number::<2>()?),
            0xce => Token::Uint(self.number::<4>()?),
            0xcf => Token::Uint(self.number::<8>()?),
            0xd0 => signed((self.number::<1>()? as i8).into()),
            0xd1 => signed((self.number::<2>()? as i16).into()),
            0xd2 => signed((self.number::<4>()? as i32).into()),
            0xd3 => signed(self.number::<8>()? as i64),
            0xd4..=0xd8 => Token::Ext(self.take(1 + (1 << (marker - 0xd4)))?),
            0xd9 => Token::Text(self.sized::<1>(0)?),
            0xda => Token::Text(self.sized::<2>(0)?),
            0xdb => Token::Text(self.sized::<4>(0)?),
            0xdc => Token::Array(self.number::<2>()? as u32),
            0xdd => Token::Array(self.number::<4>()? as u32),
            0xde => Token::Map(self.number::<2>()? as u32),
            0xdf => Token::Map(self.number::<4>()? as u32),
            0xe0..=0xff => Token::Negative((marker as i8).into()),
        })
    }

    /// Skips one value with all it holds, however deep: no recursion, so depth has no limit.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn skip(&mut self) -> Result<(), MsgpackError> {
        let token = self.read()?;
        self.skip_rest_of(token)
    }

    /// Skips what belongs to a token already read.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn skip_rest_of(&mut self, token: Token<'_>) -> Result<(), MsgpackError> {
        let mut left = values_inside(token);
        while left > 0 {
            left = left - 1 + values_inside(self.read()?);
        }
        Ok(())
    }

    fn sized<const WIDTH: usize>(&mut self, more: usize) -> Result<&'a [u8], MsgpackError> {
        let length = self.number::<WIDTH>()? as usize;
        self.take(length + more)
    }

    fn number<const WIDTH: usize>(&mut self) -> Result<u64, MsgpackError> {
        let bytes = self.take(WIDTH)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], MsgpackError> {
        let rest = &self.payload[self.at..];
        let taken = rest
            .get(..length)
            .ok_or(MsgpackError::Truncated { at: self.at })?;
        self.at += length;
        Ok(taken)
    }
}

fn signed(number: i64) -> Token<'static> {
    u64::try_from(number).map_or(Token::Negative(number), Token::Uint)
}

/// Cannot overflow: every value counted is a byte of the payload or ends the loop as truncated.
fn values_inside(token: Token<'_>) -> u64 {
    match token {
        Token::Array(count) => count.into(),
        Token::Map(pairs) => u64::from(pairs) * 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_value_is_read() {
        let rows: [(&[u8], Token<'_>); 20] = [
            (&[0x07], Token::Uint(7)),
            (&[0xcc, 0xff], Token::Uint(255)),
            (&[0xcd, 1, 0], Token::Uint(256)),
            (&[0xce, 0, 1, 0, 0], Token::Uint(65_536)),
            (
                &[0xcf, 255, 255, 255, 255, 255, 255, 255, 255],
                Token::Uint(u64::MAX),
            ),
            (&[0xff], Token::Negative(-1)),
            (&[0xd0, 0x80], Token::Negative(-128)),
            (&[0xd0, 0x05], Token::Uint(5)),
            (&[0xd1, 0xff, 0], Token::Negative(-256)),
            (&[0xd2, 255, 255, 255, 254], Token::Negative(-2)),
            (
                &[0xd3, 255, 255, 255, 255, 255, 255, 255, 253],
                Token::Negative(-3),
            ),
            (&[0xca, 0x3f, 0x80, 0, 0], Token::Float(1.0)),
            (&[0xa2, b'o', b'k'], Token::Text(b"ok")),
            (&[0xd9, 1, b'x'], Token::Text(b"x")),
            (&[0xc4, 2, 9, 8], Token::Bytes(&[9, 8])),
            (&[0xd5, 1, 2, 3], Token::Ext(&[1, 2, 3])),
            (&[0xdc, 1, 0], Token::Array(256)),
            (&[0xdf, 0, 0, 0, 3], Token::Map(3)),
            (&[0xc0], Token::Nil),
            (&[0xc3], Token::Bool(true)),
        ];
        for (bytes, token) in rows {
            assert_eq!(Reader::new(bytes).read(), Ok(token), "{bytes:x?}");
        }
        assert_eq!(
            Reader::new(&[0xc1]).read(),
            Err(MsgpackError::Reserved { at: 0 })
        );
    }

    #[test]
    fn skipping_goes_as_deep_as_the_payload() {
        let mut deep = vec![0x91; 1_000_000];
        assert!(
            Reader::new(&deep).skip().is_err(),
            "the innermost is missing"
        );
        deep.push(0xc0);
        let mut reader = Reader::new(&deep);
        assert_eq!(reader.skip(), Ok(()));
        assert_eq!(
            reader.read(),
            Err(MsgpackError::Truncated { at: 1_000_001 })
        );
    }
}
