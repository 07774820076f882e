// Vectors of TFS_LANES floats in the compiler's own notation, and how memory of each element type becomes one.
// Included once for every instruction set, inside its namespace.

typedef float Vector __attribute__((vector_size(TFS_LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(TFS_LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(TFS_LANES * 4)));
typedef uint16_t Shorts __attribute__((vector_size(TFS_LANES * 2)));

constexpr int64_t kLanes = TFS_LANES;

static inline Vector splat(float value) { return value - Vector{}; }

static inline Integers splat(int32_t value) { return value + Integers{}; }

static inline Vector load(const float* from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

// The compiler's own conversion takes twice the instructions.
static inline Bits load_shorts(const void* from) {
#if TFS_LANES == 16
  return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#elif TFS_LANES == 8
  return (Bits)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  Shorts shorts;
  memcpy(&shorts, from, sizeof shorts);
  return __builtin_convertvector(shorts, Bits);
#endif
}

static inline Vector load(const BFloat16* from) { return (Vector)(load_shorts(from) << 16); }

// Of the lower half of each lane.
static inline Vector from_half(Bits bits) {
  const Bits magnitude = (bits & 0x7fff) << 13;
  // The exponent's bias differs by 112; subnormals come right by the same product.
  const Bits scaled = (Bits)((Vector)magnitude * splat(0x1p112f));
  const Bits infinite = (Bits)(magnitude >= 0x0f800000u);
  return (Vector)(scaled | (infinite & 0x7f800000u) | ((bits & 0x8000) << 16));
}

static inline Vector load(const Half* from) { return from_half(load_shorts(from)); }

static inline void store(float* to, Vector vector) { memcpy(to, &vector, sizeof vector); }

static inline void store_shorts(void* to, Bits bits) {
#if TFS_LANES == 16
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)bits));
#else
  const Shorts shorts = __builtin_convertvector(bits, Shorts);
  memcpy(to, &shorts, sizeof shorts);
#endif
}

// To nearest, ties to even.
static inline void store(BFloat16* to, Vector vector) {
  const Bits bits = (Bits)vector;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits is_nan = (Bits)(vector != vector);
  store_shorts(to, (is_nan & 0x7fc0) | (~is_nan & rounded));
}

// To nearest, ties to even.
static inline void store(Half* to, Vector vector) {
  const Bits bits = (Bits)vector;
  const Bits magnitude = bits & 0x7fffffff;
  const Bits normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 the sum with one half shifts and rounds at once.
  const Bits small = (Bits)((Vector)magnitude + splat(0.5f)) - 0x3f000000u;
  const Bits is_small = (Bits)(magnitude < 0x38800000u);
  const Bits is_large = (Bits)(magnitude >= 0x47800000u);
  const Bits is_nan = (Bits)(magnitude > 0x7f800000u);
  const Bits large = (Bits{} + 0x7c00u) | (is_nan & 0x0200u);
  const Bits finite = (is_small & small) | (~is_small & normal);
  store_shorts(to, (is_large & large) | (~is_large & finite) | ((bits >> 16) & 0x8000));
}

// Fewer elements than lanes; zeros for the others.
template <class E>
static inline Vector load_some(const E* from, int64_t count) {
  E buffer[kLanes] = {};
  memcpy(buffer, from, count * sizeof(E));
  return load(buffer);
}

template <class E>
static inline void store_some(E* to, Vector vector, int64_t count) {
  E buffer[kLanes];
  store(buffer, vector);
  memcpy(to, buffer, count * sizeof(E));
}

template <class E>
static inline Vector load_upto(const E* from, int64_t count) {
  return count >= kLanes ? load(from) : load_some(from, count);
}

template <class E>
static inline void store_upto(E* to, Vector vector, int64_t count) {
  if (count >= kLanes) {
    store(to, vector);
  } else {
    store_some(to, vector, count);
  }
}

// NaN only where both are or the right one is.
static inline Vector greater(Vector left, Vector right) { return left > right ? left : right; }

static inline float sum_of(Vector vector) {
  float lanes[kLanes];
  store(lanes, vector);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

static inline float greatest_of(Vector vector) {
  float lanes[kLanes];
  store(lanes, vector);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

// e^x to about 1e-7 of itself; zero below -87, no more than e^88 above. The polynomial is that of the Cephes
// library (Moshier), expf.c.
static inline Vector exponential(Vector x) {
  const Integers vanishes = x < splat(-87.0f);
  x = x > splat(88.0f) ? splat(88.0f) : x;
  x = vanishes ? splat(-87.0f) : x;
  const Vector shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector whole = (x * splat(1.44269504088896341f) + shift) - shift;
  Vector r = x - whole * splat(0.693359375f);
  r = r + whole * splat(2.12194440e-4f);
  Vector p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  const Integers exponent = (__builtin_convertvector(whole, Integers) + 127) << 23;
  const Vector result = p * (Vector)exponent;
  return vanishes ? Vector{} : result;
}
