//! Tests of `tensor`.

mod blocks;
