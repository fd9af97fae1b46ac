//! Vector arithmetic of the machine's own width, chosen at run time, and the functions that scalar libraries compute one at a time.

use crate::spec::Activation;
use pulp::Simd;

/// Defines `fn name(args)` that runs its body, generic over the vector type `S` of `simd`, on the widest vectors the machine has.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident<$S:ident>($simd:ident $(, $arg:ident: $type:ty)* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "a kernel takes its rows one by one")]
        pub(in crate::ops::flex) fn $name<'a>($($arg: $type),*) $(-> $out)? {
            struct Kernel<'a>($($type,)* std::marker::PhantomData<&'a ()>);
            impl<'a> pulp::WithSimd for Kernel<'a> {
                type Output = vectorised!(@out $($out)?);
                #[inline(always)]
                fn with_simd<$S: pulp::Simd>(self, $simd: $S) -> Self::Output {
                    let Kernel($($arg,)* _) = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Kernel($($arg,)* std::marker::PhantomData))
        }
    };
    (@out) => { () };
    (@out $out:ty) => { $out };
}
pub(super) use vectorised;

/// Floats in a vector.
pub(super) const fn lanes<S: Simd>() -> usize {
    S::F32_LANES
}

/// The vector at `at`; what lies beyond the end reads as zero.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, x: &[f32], at: usize) -> S::f32s {
    let rest = &x[at..];
    match S::as_simd_f32s(rest).0.first() {
        Some(&whole) => whole,
        None => simd.partial_load_f32s(rest),
    }
}

/// Writes the vector at `at`, as far as the slice goes.
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, x: &mut [f32], at: usize, value: S::f32s) {
    let rest = &mut x[at..];
    if rest.len() >= lanes::<S>() {
        S::as_mut_simd_f32s(rest).0[0] = value;
    } else {
        simd.partial_store_f32s(rest, value);
    }
}

/// `a·b + c`.
#[inline(always)]
pub(super) fn fma<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(a, b, c)
}

/// `e^x` to 2 units in the last place between -87 and 88, and clamped there: Cephes' `expf`.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it leaves the nearest integer in the low bits.
    let k = |value: f32| simd.splat_f32s(value);
    let x = simd.max_f32s(simd.min_f32s(x, k(88.376_26)), k(-87.336_54));
    let shifted = fma(simd, x, k(std::f32::consts::LOG2_E), k(ROUND));
    let n = simd.sub_f32s(shifted, k(ROUND));
    let r = fma(simd, n, k(-0.693_359_4), x);
    let r = fma(simd, n, k(2.121_944_4e-4), r);
    let mut p = k(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma(simd, p, r, k(c));
    }
    let p = simd.add_f32s(fma(simd, p, simd.mul_f32s(r, r), r), k(1.0));
    let bits = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let scale = simd.transmute_f32s_u32s(simd.add_u32s(bits, simd.splat_u32s(1.0f32.to_bits())));
    simd.mul_f32s(p, scale)
}

/// An activation's value and slope.
#[inline(always)]
pub(super) fn activation<S: Simd>(simd: S, kind: Activation, x: S::f32s) -> (S::f32s, S::f32s) {
    let k = |value: f32| simd.splat_f32s(value);
    let one = k(1.0);
    match kind {
        Activation::Silu => {
            let sigmoid = simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))));
            let slope = simd.mul_f32s(sigmoid, fma(simd, x, simd.sub_f32s(one, sigmoid), one));
            (simd.mul_f32s(x, sigmoid), slope)
        }
        Activation::Gelu => {
            // erf by Abramowitz and Stegun 7.1.26, to 1.5e-7.
            let z = simd.abs_f32s(simd.mul_f32s(x, k(std::f32::consts::FRAC_1_SQRT_2)));
            let t = simd.div_f32s(one, fma(simd, z, k(0.327_591_1), one));
            let mut p = k(1.061_405_4);
            for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                p = fma(simd, p, t, k(c));
            }
            let bell = exp(simd, simd.neg_f32s(simd.mul_f32s(z, z)));
            let tail = simd.mul_f32s(k(0.5), simd.mul_f32s(simd.mul_f32s(p, t), bell));
            let below = simd.less_than_f32s(x, k(0.0));
            let share = simd.select_f32s(below, tail, simd.sub_f32s(one, tail));
            let density = simd.mul_f32s(bell, k(0.398_942_3));
            (simd.mul_f32s(x, share), fma(simd, x, density, share))
        }
        Activation::GeluTanh => {
            let (a, b) = (k(0.797_884_6), k(0.797_884_6 * 0.044_715));
            let squared = simd.mul_f32s(x, x);
            let inner = simd.mul_f32s(x, fma(simd, b, squared, a));
            let e = exp(simd, simd.add_f32s(inner, inner));
            // (1 + tanh) / 2
            let share = simd.sub_f32s(one, simd.div_f32s(one, simd.add_f32s(e, one)));
            let inner_slope = fma(simd, k(3.0), simd.mul_f32s(b, squared), a);
            let bend = simd.mul_f32s(simd.mul_f32s(k(2.0), share), simd.sub_f32s(one, share));
            (simd.mul_f32s(x, share), fma(simd, simd.mul_f32s(x, bend), inner_slope, share))
        }
        Activation::Relu => {
            let above = simd.greater_than_f32s(x, k(0.0));
            (simd.max_f32s(x, k(0.0)), simd.select_f32s(above, one, k(0.0)))
        }
    }
}
