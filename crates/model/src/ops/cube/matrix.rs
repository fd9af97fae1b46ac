//! Matrices as the kernels read them, and how many cubes and units a kernel is launched on. No kernel is here.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::{DType, Shape, TensorMetadata};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

/// Widest vector a kernel reads or writes: WGSL has none wider.
pub(super) const VECTOR_MAX: usize = 4;

/// A matrix on the device whose rows lie `stride` elements apart, each contiguous: CUDA's pitched allocations are read in place.
pub(super) struct Matrix {
    pub tensor: CubeTensor,
    pub rows: usize,
    pub columns: usize,
    pub stride: usize,
}

impl Matrix {
    /// Copies only where the elements of a row are apart.
    pub fn new(tensor: CubeTensor) -> Self {
        let [rows, columns] = tensor.shape().dims::<2>();
        let in_rows = !tensor.meta.is_tiled() && tensor.meta.strides()[1] == 1;
        let tensor = if in_rows { tensor } else { into_contiguous(tensor) };
        let stride = tensor.meta.strides()[0];
        Self { tensor, rows, columns, stride }
    }

    pub fn client(&self) -> Client {
        self.tensor.client.clone()
    }

    pub fn kind(&self) -> ElemType {
        dtype_to_storage_type(self.tensor.dtype)
    }

    /// An uninitialised tensor beside this one, without gaps between rows.
    pub fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> CubeTensor {
        empty_device_contiguous_dtype(self.client(), self.tensor.device.clone(), Shape::new(shape), dtype)
    }

    /// The widest vectors that fit lengths and strides `lengths`, as well as this matrix's own stride.
    pub fn vector_size(&self, lengths: &[usize]) -> usize {
        let fits = |&size: &usize| {
            size <= VECTOR_MAX && self.stride.is_multiple_of(size) && lengths.iter().all(|length| length.is_multiple_of(size))
        };
        self.tensor.client.io_optimized_vector_sizes(self.tensor.dtype.size()).filter(fits).max().unwrap_or(1)
    }
}

/// A vector on the device, without gaps.
pub(super) fn vector(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// One cube a row; there may be more cubes than rows.
pub(super) fn cubes(client: &Client, rows: usize) -> CubeCount {
    CubeCountSelection::new(client, rows as u32).cube_count()
}

/// One unit an element; there may be more units than elements.
pub(super) fn units(client: &Client, elements: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, elements);
    (cubecl::calculate_cube_count_elemwise(client, elements, dim), dim)
}
