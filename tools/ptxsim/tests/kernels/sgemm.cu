// FP32 matrix product from shared memory: c = a b for row-major a [M][K], b [K][N], c [M][N].
// M and N multiples of 64, K of 16. Block (16, 16), grid (N / 64, M / 64); each thread computes 4 x 4.
extern "C" __global__ void __launch_bounds__(256) sgemm_64x64x16(
    float *__restrict__ c,         // [M][N]
    const float *__restrict__ a,   // [M][K]
    const float *__restrict__ b,   // [K][N]
    int m, int n, int k) {
    __shared__ float sa[16][64 + 1];  // transposed; the 65th value pads the row
    __shared__ float sb[16][64];
    const int tx = threadIdx.x, ty = threadIdx.y, thread = ty * 16 + tx;
    const int row = blockIdx.y * 64, column = blockIdx.x * 64;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < k; k0 += 16) {
        for (int i = 0; i < 4; i++) {
            const int at = i * 256 + thread;
            sa[at % 16][at / 16] = a[(row + at / 16) * k + k0 + at % 16];
            sb[at / 64][at % 64] = b[(k0 + at / 64) * n + column + at % 64];
        }
        __syncthreads();  // the tile is complete
#pragma unroll
        for (int kk = 0; kk < 16; kk++) {
            float x[4], y[4];
            for (int i = 0; i < 4; i++) x[i] = sa[kk][ty + 16 * i];
            for (int j = 0; j < 4; j++) y[j] = sb[kk][tx + 16 * j];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
        }
        __syncthreads();  // the tile has been read
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) c[(row + ty + 16 * i) * n + column + tx + 16 * j] = sum[i][j];
    (void)m;
}
