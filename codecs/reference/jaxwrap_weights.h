/* Weighted distortion for encoders: map files, sums over blocks, trace. The same file serves HM (C++11) and JM (C99).
 *
 * Define JAXWRAP_WEIGHTS_IMPLEMENTATION in exactly one source file before including it, and JW_SAMPLE everywhere as the
 * encoder's sample type where that is not short.
 *
 * Mode 0 (diag): the distortion of a block is sum w q^2, q = reconstruction - original. Weights come from a .dat map.
 * Mode 1 (idse): sum over a fixed grid of 16x16 blocks of sum_s (r_s . q)^2, plus tau sum q^2. Rows r_s come from a
 * .rows file. In 4:2:0 the grid is 8x8 in chroma. Planes are forms of their own. A block adds what the form of its grid
 * block grows by when it is coded after the 4x4 units before it in z-order: the sum over a grid block is the whole
 * form, whatever the partition: split and no split are compared on one quantity. An increment may be negative.
 *
 * Coordinates and sizes are in samples of the plane (0 y, 1 u, 2 v). Functions that may fail return a message or NULL.
 */
#ifndef JAXWRAP_WEIGHTS_H
#define JAXWRAP_WEIGHTS_H

#include <stdint.h>
#include <stdio.h>

#ifndef JW_SAMPLE
#define JW_SAMPLE short
#endif

#define JW_BANNER "jaxwrap patch v1, modes diag, idse"
#define JW_MAX_ROWS 64

/* Bits of WeightDecisions. */
#define JW_SSE 1     /* partition and mode choice */
#define JW_RDOQ 2    /* lambda of the quantiser: lambda / mean weight of the block */
#define JW_SATD 4    /* pre-selection of intra modes and motion search: SATD or SAD x sqrt(mean weight) */
#define JW_FILTERS 8 /* loop filters that the encoder chooses */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char *map;     /* WeightMap: .dat (mode 0) or .rows (mode 1); NULL or "": off */
  int         mode;    /* WeightMode: 0 diag, 1 idse */
  int         period;  /* WeightPeriod: 0 one map, 1 one per picture by POC, N > 1 one per I picture */
  int         decisions;    /* WeightDecisions: sum of JW_SSE ... JW_FILTERS */
  int         qp_offset;    /* WeightQPOffset: 0, 1 */
  double      tau;          /* WeightTau, mode 1 */
  double      lambda_scale; /* WeightLambdaScale */
  const char *trace;        /* WeightTrace: file; NULL or "": off */
  int         trace_costs;  /* WeightTraceCosts: every N-th block cost; 0 none */
} jw_settings;

typedef struct {
  int     width, height; /* of the source */
  int     coded_width, coded_height;
  int     grid;     /* side of a grid block of mode 1: 16, chroma of 4:2:0 8 */
  int     stride;   /* of values */
  float  *values;   /* mode 0: [coded_height][stride]; mode 1: [coded_height][rows][stride] */
  double *integral; /* [coded_height + 1][coded_width + 1]: sums of weights above and left */
} jw_plane;

typedef struct {
  jw_settings settings;
  int         active; /* a map is in use */
  int         planes; /* 1 or 3 */
  int         rows;   /* mode 1: l; mode 0: 0 */
  int         maps;   /* in the file */
  int         loaded; /* number of the map held, -1: none */
  int         poc;    /* of the picture being coded */
  long        costs_seen;
  FILE       *file;
  FILE       *trace;
  jw_plane    plane[3];
  char        message[1024];
} jw_state;

/* Settings of an encoder without any option given: everything off. */
jw_settings jw_defaults(void);

/* Checks the settings and the whole map file, and loads the first map. width, height: of the source, luma samples;
 * coded_*: with the encoder's padding (weights are replicated there, rows are 0). chroma: 400 or 420; bit_depth: 8 to
 * 10; frames: pictures that will be coded; encoder: "hm" or "jm", for the trace. The strings of the settings are
 * kept, not copied. Returns NULL, or what is wrong, and then nothing is left open. */
const char *jw_open(jw_state *state, const jw_settings *settings, int width, int height, int chroma, int bit_depth,
                    int frames, int coded_width, int coded_height, const char *encoder);
void        jw_close(jw_state *state);

/* To be called before each picture, in coding order, with its number in display order. Loads its map if it is another
 * than the one held. */
const char *jw_picture(jw_state *state, int poc, int is_intra);

/* 1 where a map is in use and bit is among the decisions. */
static inline int jw_on(const jw_state *state, int bit) {
  return state->active && (state->settings.decisions & bit);
}

/* Mean weight of a rectangle (mode 1: sum_s r_s^2 + tau), at least 2^-20 so that lambda can be divided by it. The part
 * outside the coded picture does not count. */
double jw_mean(const jw_state *state, int plane, int x, int y, int w, int h);

/* round(-3 log2 mean weight) of a luma rectangle. */
int jw_qp_offset(const jw_state *state, int x, int y, int w, int h);

/* Mode 0: sum w q^2 of a block; w = 1 everywhere gives the integer sum of squares. Strides in samples. The block lies
 * in the coded picture; its width is a multiple of 4. */
double jw_distortion(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org,
                     int org_stride, const JW_SAMPLE *rec, int rec_stride);

/* Mode 1: what the block adds to the form, as above. picture_org, picture_rec: the planes from their sample (0, 0), for
 * the units coded before; NULL: none was. The block is aligned to 4; where it lies within one grid block it is aligned
 * to its size, larger ones consist of whole grid blocks (but for the picture's border). */
double jw_form(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org, int org_stride,
               const JW_SAMPLE *rec, int rec_stride, const JW_SAMPLE *picture_org, int picture_org_stride,
               const JW_SAMPLE *picture_rec, int picture_rec_stride);

/* Mode 1: inner products p_s of the units before a block within one grid block. Returns l, or 0 for a larger one. */
int jw_products_before(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *picture_org,
                       int picture_org_stride, const JW_SAMPLE *picture_rec, int picture_rec_stride, double *products);

/* What an encoder compares: jw_distortion or jw_form by mode, rounded to a whole number and traced where it is due. */
double jw_cost(jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org, int org_stride,
               const JW_SAMPLE *rec, int rec_stride, const JW_SAMPLE *picture_org, int picture_org_stride,
               const JW_SAMPLE *picture_rec, int picture_rec_stride);

/* One line of the trace; nothing where there is none. type: 'I', 'P' or 'B'; bits: as finally written. */
void jw_trace_bits(jw_state *state, int poc, char type, int x, int y, int w, int h, long bits);

/* One cost line with the errors of the block; products: count partial sums. */
void jw_trace_cost(jw_state *state, int plane, int x, int y, int w, int h, double cost, const JW_SAMPLE *org,
                   int org_stride, const JW_SAMPLE *rec, int rec_stride, int count, const double *products);

#ifdef __cplusplus
}
#endif
#endif /* JAXWRAP_WEIGHTS_H */

#if defined(JAXWRAP_WEIGHTS_IMPLEMENTATION) && !defined(JAXWRAP_WEIGHTS_IMPLEMENTED)
#define JAXWRAP_WEIGHTS_IMPLEMENTED

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define JW_SEEK _fseeki64
#define JW_TELL _ftelli64
#else
#define JW_SEEK fseek
#define JW_TELL ftell
#endif

#define JW_LANES 8
#define JW_ROWS_HEADER 32
#define JW_DIGEST 32

jw_settings jw_defaults(void) {
  jw_settings settings;
  memset(&settings, 0, sizeof settings);
  settings.decisions    = JW_SSE | JW_RDOQ | JW_SATD | JW_FILTERS;
  settings.lambda_scale = 1.0;
  return settings;
}

static const char *jw_fail(jw_state *state, const char *what, const char *format, ...) {
  va_list arguments;
  int     start = snprintf(state->message, sizeof state->message, "jaxwrap: %s: ", what);
  if (start < 0 || start >= (int) sizeof state->message) start = 0;
  va_start(arguments, format);
  vsnprintf(state->message + start, sizeof state->message - (size_t) start, format, arguments);
  va_end(arguments);
  return state->message;
}

static uint32_t jw_u32(const unsigned char *bytes) {
  return (uint32_t) bytes[0] | (uint32_t) bytes[1] << 8 | (uint32_t) bytes[2] << 16 | (uint32_t) bytes[3] << 24;
}

/* Bytes of one map, or of the l rows of one frame. */
static int64_t jw_record_bytes(const jw_state *state) {
  int64_t samples = 0;
  for (int p = 0; p < state->planes; p++) samples += (int64_t) state->plane[p].width * state->plane[p].height;
  return 4 * samples * (state->rows ? state->rows : 1);
}

/* Reads one line of a plane into values. */
static int jw_read_line(jw_state *state, float *values, int width, unsigned char *buffer) {
  if (fread(buffer, 4, (size_t) width, state->file) != (size_t) width) return 0;
  for (int x = 0; x < width; x++) {
    uint32_t bits = jw_u32(buffer + 4 * x);
    memcpy(values + x, &bits, sizeof bits);
  }
  return 1;
}

/* All maps once from the first to the last: finite, not negative (mode 0), none all zero. */
static const char *jw_check_values(jw_state *state, float *line, unsigned char *buffer) {
  const char *path = state->settings.map;
  int         rows = state->rows ? state->rows : 1;
  for (int map = 0; map < state->maps; map++) {
    int all_zero = 1;
    for (int s = 0; s < rows; s++) {
      for (int p = 0; p < state->planes; p++) {
        for (int y = 0; y < state->plane[p].height; y++) {
          if (!jw_read_line(state, line, state->plane[p].width, buffer))
            return jw_fail(state, path, "map %d cannot be read; write the file again", map);
          for (int x = 0; x < state->plane[p].width; x++) {
            float value = line[x];
            if (!(value <= FLT_MAX && value >= (state->rows ? -FLT_MAX : 0.0f)))
              return jw_fail(state, path, "plane %c of map %d is %g at row %d, column %d; wanted %s", "yuv"[p], map,
                             (double) value, y, x, state->rows ? "finite rows" : "weights finite and >= 0");
            all_zero &= value == 0.0f;
          }
        }
      }
    }
    if (all_zero) return jw_fail(state, path, "map %d is zero everywhere; wanted some weight above 0", map);
  }
  return NULL;
}

/* Reads the header, checks the length, and sets rows and maps. */
static const char *jw_check_header(jw_state *state, int chroma) {
  const char   *path = state->settings.map;
  unsigned char head[JW_ROWS_HEADER];
  int64_t       length, header, digest, record, wanted;
  int           have;
  if (JW_SEEK(state->file, 0, SEEK_END) || (length = (int64_t) JW_TELL(state->file)) < 0
      || JW_SEEK(state->file, 0, SEEK_SET))
    return jw_fail(state, path, "its length cannot be found; wanted a regular file");
  have = (int) fread(head, 1, sizeof head, state->file);
  if (state->settings.mode == 0) {
    if (have >= 8 && !memcmp(head, "JWROWS\r\n", 8))
      return jw_fail(state, path, "Jacobian rows were given; WeightMode=0 wants a .dat map");
    if (have < 4) return jw_fail(state, path, "it has %d bytes; wanted the number of maps in the first 4", have);
    header = 4, digest = 0;
    state->rows = 0;
    state->maps = jw_u32(head) > 0x7fffffffu ? 0x7fffffff : (int) jw_u32(head);
  } else {
    if (have < JW_ROWS_HEADER || memcmp(head, "JWROWS\r\n", 8))
      return jw_fail(state, path, "it does not start with JWROWS; WeightMode=1 wants a .rows file of Jacobian rows");
    if (jw_u32(head + 8) != 1)
      return jw_fail(state, path, "version %u was given; wanted 1", jw_u32(head + 8));
    if (jw_u32(head + 12) < 1 || jw_u32(head + 12) > JW_MAX_ROWS)
      return jw_fail(state, path, "%u rows per frame were given; wanted 1 to %d", jw_u32(head + 12), JW_MAX_ROWS);
    if (jw_u32(head + 16) != (uint32_t) state->plane[0].width || jw_u32(head + 20) != (uint32_t) state->plane[0].height
        || jw_u32(head + 24) != (uint32_t) chroma)
      return jw_fail(state, path, "rows of %ux%u in %u were given; the pictures are %dx%d in %d", jw_u32(head + 16),
                     jw_u32(head + 20), jw_u32(head + 24), state->plane[0].width, state->plane[0].height, chroma);
    header = JW_ROWS_HEADER, digest = JW_DIGEST;
    state->rows = (int) jw_u32(head + 12);
    state->maps = jw_u32(head + 28) > 0x7fffffffu ? 0x7fffffff : (int) jw_u32(head + 28);
  }
  if (state->maps < 1) return jw_fail(state, path, "it holds 0 maps; wanted at least 1");
  record = jw_record_bytes(state);
  wanted = state->maps > (INT64_MAX - header - digest) / record ? INT64_MAX : header + digest + record * state->maps;
  if (length != wanted)
    return jw_fail(state, path, "it has %lld bytes; %lld were wanted for %d maps of %dx%d in %d", (long long) length,
                   (long long) wanted, state->maps, state->plane[0].width, state->plane[0].height, chroma);
  JW_SEEK(state->file, header, SEEK_SET);
  return NULL;
}

static const char *jw_check_settings(jw_state *state, int chroma, int bit_depth) {
  const jw_settings *settings = &state->settings;
  struct { const char *name; int value, largest; } numbers[] = {
    {"WeightMode", settings->mode, 1}, {"WeightPeriod", settings->period, INT_MAX},
    {"WeightDecisions", settings->decisions, 15}, {"WeightQPOffset", settings->qp_offset, 1},
    {"WeightTraceCosts", settings->trace_costs, INT_MAX}};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    if (numbers[i].value < 0 || numbers[i].value > numbers[i].largest)
      return jw_fail(state, numbers[i].name, "%d was given; wanted 0 to %d", numbers[i].value, numbers[i].largest);
  }
  if (!(settings->tau >= 0 && settings->tau <= FLT_MAX))
    return jw_fail(state, "WeightTau", "%g was given; wanted a finite number >= 0", settings->tau);
  if (!(settings->lambda_scale > 0 && settings->lambda_scale <= FLT_MAX))
    return jw_fail(state, "WeightLambdaScale", "%g was given; wanted a finite number > 0", settings->lambda_scale);
  if (state->active && chroma != 400 && chroma != 420)
    return jw_fail(state, settings->map, "pictures are %d; maps are for 400 and 420", chroma);
  if (state->active && (bit_depth < 8 || bit_depth > 10))
    return jw_fail(state, settings->map, "samples have %d bits; maps are for 8 to 10", bit_depth);
  return NULL;
}

static const char *jw_open_map(jw_state *state, int chroma, int frames) {
  const jw_settings *settings = &state->settings;
  int                width    = state->plane[0].width;
  int                wanted;
  const char        *message;
  unsigned char     *buffer;
  float             *line;
  if (chroma == 420 && (width % 2 || state->plane[0].height % 2))
    return jw_fail(state, settings->map, "pictures are %dx%d in 420; wanted even width and height", width,
                   state->plane[0].height);
  if (!(state->file = fopen(settings->map, "rb")))
    return jw_fail(state, settings->map, "it cannot be opened; wanted a file that can be read");
  if ((message = jw_check_header(state, chroma))) return message;
  if (settings->period && frames < 1)
    return jw_fail(state, settings->map, "the number of frames is not given; WeightPeriod=%d wants it",
                   settings->period);
  wanted = settings->period ? (int) (((int64_t) frames + settings->period - 1) / settings->period) : 1;
  if (state->maps != wanted)
    return jw_fail(state, settings->map, "it holds %d maps; %d were wanted for %d frames with WeightPeriod=%d",
                   state->maps, wanted, frames, settings->period);
  line   = (float *) malloc((size_t) width * sizeof *line);
  buffer = (unsigned char *) malloc((size_t) width * 4);
  for (int p = 0; p < state->planes; p++) {
    jw_plane *plane  = &state->plane[p];
    size_t    values = (size_t) plane->stride * (size_t) plane->coded_height * (size_t) (state->rows ? state->rows : 1);
    plane->values    = (float *) calloc(values, sizeof *plane->values);
    plane->integral  = (double *) calloc((size_t) (plane->coded_width + 1) * (size_t) (plane->coded_height + 1),
                                         sizeof *plane->integral);
    if (!plane->values || !plane->integral || !line || !buffer)
      message = jw_fail(state, settings->map, "%lld bytes were wanted; there is not so much memory",
                        (long long) (values * sizeof *plane->values));
  }
  if (!message) message = jw_check_values(state, line, buffer);
  free(line);
  free(buffer);
  return message;
}

const char *jw_open(jw_state *state, const jw_settings *settings, int width, int height, int chroma, int bit_depth,
                    int frames, int coded_width, int coded_height, const char *encoder) {
  const char *message;
  memset(state, 0, sizeof *state);
  state->settings = *settings;
  state->loaded   = -1;
  state->active   = settings->map && settings->map[0];
  state->planes   = chroma == 400 ? 1 : 3;
  for (int p = 0; p < state->planes; p++) {
    jw_plane *plane     = &state->plane[p];
    int       shift     = p ? 1 : 0;
    plane->width        = width >> shift;
    plane->height       = height >> shift;
    plane->coded_width  = coded_width >> shift;
    plane->coded_height = coded_height >> shift;
    plane->grid         = 16 >> shift;
    plane->stride       = (plane->coded_width + 15) / 16 * 16;
  }
  message = jw_check_settings(state, chroma, bit_depth);
  if (!message && state->active) message = jw_open_map(state, chroma, frames);
  if (!message && settings->trace && settings->trace[0]) {
    if ((state->trace = fopen(settings->trace, "wb")))
      fprintf(state->trace, "jaxwrap trace 1 %s\n", encoder);
    else
      message = jw_fail(state, settings->trace, "the trace cannot be written there; name another file");
  }
  if (!message && state->active) message = jw_picture(state, 0, 1);
  if (message) jw_close(state);
  return message;
}

void jw_close(jw_state *state) {
  for (int p = 0; p < 3; p++) {
    free(state->plane[p].values);
    free(state->plane[p].integral);
    state->plane[p].values = NULL, state->plane[p].integral = NULL;
  }
  if (state->file) fclose(state->file);
  if (state->trace) fclose(state->trace);
  state->file = state->trace = NULL;
  state->active              = 0;
}

/* Weights beyond the source repeat its border; rows stay 0 there. */
static void jw_replicate(jw_plane *plane) {
  for (int y = 0; y < plane->coded_height; y++) {
    float *line = plane->values + (size_t) y * (size_t) plane->stride;
    if (y >= plane->height) memcpy(line, line - plane->stride, (size_t) plane->coded_width * sizeof *line);
    for (int x = plane->width; x < plane->coded_width; x++) line[x] = line[plane->width - 1];
  }
}

static void jw_integrate(const jw_state *state, jw_plane *plane) {
  int rows = state->rows ? state->rows : 1;
  for (int y = 0; y < plane->coded_height; y++) {
    const float  *line  = plane->values + (size_t) y * (size_t) rows * (size_t) plane->stride;
    const double *above = plane->integral + (size_t) y * (size_t) (plane->coded_width + 1);
    double       *below = plane->integral + (size_t) (y + 1) * (size_t) (plane->coded_width + 1);
    double        sum   = 0;
    for (int x = 0; x < plane->coded_width; x++) {
      sum += state->rows ? state->settings.tau : (double) line[x];
      for (int s = 0; s < state->rows; s++) {
        double value = (double) line[(size_t) s * (size_t) plane->stride + (size_t) x];
        sum += value * value;
      }
      below[x + 1] = above[x + 1] + sum;
    }
  }
}

const char *jw_picture(jw_state *state, int poc, int is_intra) {
  const jw_settings *settings = &state->settings;
  int                rows     = state->rows ? state->rows : 1;
  int                map      = state->loaded;
  int64_t            header   = state->rows ? JW_ROWS_HEADER : 4;
  unsigned char     *buffer;
  state->poc = poc;
  if (!state->active) return NULL;
  if (settings->period == 0)
    map = 0;
  else if (settings->period == 1 || is_intra)
    map = poc / settings->period;
  if (map == state->loaded) return NULL;
  if (map < 0 || map >= state->maps)
    return jw_fail(state, settings->map, "picture %d wants map %d; it holds %d", poc, map, state->maps);
  if (!(buffer = (unsigned char *) malloc((size_t) state->plane[0].width * 4)))
    return jw_fail(state, settings->map, "%d bytes of memory were wanted; there are none", state->plane[0].width * 4);
  JW_SEEK(state->file, header + jw_record_bytes(state) * map, SEEK_SET);
  for (int s = 0; s < rows; s++) {
    for (int p = 0; p < state->planes; p++) {
      jw_plane *plane = &state->plane[p];
      for (int y = 0; y < plane->height; y++) {
        float *line = plane->values + ((size_t) y * (size_t) rows + (size_t) s) * (size_t) plane->stride;
        if (!jw_read_line(state, line, plane->width, buffer)) {
          free(buffer);
          return jw_fail(state, settings->map, "map %d cannot be read; it changed while it was in use", map);
        }
      }
    }
  }
  free(buffer);
  for (int p = 0; p < state->planes; p++) {
    if (!state->rows) jw_replicate(&state->plane[p]);
    jw_integrate(state, &state->plane[p]);
  }
  state->loaded = map;
  return NULL;
}

double jw_mean(const jw_state *state, int plane, int x, int y, int w, int h) {
  const jw_plane *p      = &state->plane[plane];
  size_t          stride = (size_t) (p->coded_width + 1);
  int             right  = x + w < p->coded_width ? x + w : p->coded_width;
  int             bottom = y + h < p->coded_height ? y + h : p->coded_height;
  const double   *above  = p->integral + (size_t) y * stride;
  const double   *below  = p->integral + (size_t) bottom * stride;
  double          mean   = (below[right] - below[x] - above[right] + above[x]) / ((double) (right - x) * (bottom - y));
  return mean > 1.0 / (1 << 20) ? mean : 1.0 / (1 << 20);
}

int jw_qp_offset(const jw_state *state, int x, int y, int w, int h) {
  return (int) floor(-3.0 * log(jw_mean(state, 0, x, y, w, h)) / log(2.0) + 0.5);
}

/* Sums of a few lines are held as float lanes, which keeps whole numbers of 10-bit squares exact for 16 terms each. */
double jw_distortion(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org,
                     int org_stride, const JW_SAMPLE *rec, int rec_stride) {
  const jw_plane *p     = &state->plane[plane];
  const float    *value = p->values + (size_t) y * (size_t) p->stride + (size_t) x;
  double          sum   = 0;
  float           lanes[JW_LANES] = {0};
  int             step = w % JW_LANES ? 4 : JW_LANES;
  int             held = 0;
  for (int row = 0; row < h; row++) {
    if (step == JW_LANES) {
      for (int column = 0; column < w; column += JW_LANES) {
        for (int i = 0; i < JW_LANES; i++) {
          float q = (float) (rec[column + i] - org[column + i]);
          lanes[i] += value[column + i] * (q * q);
        }
      }
    } else {
      for (int column = 0; column < w; column += 4) {
        for (int i = 0; i < 4; i++) {
          float q = (float) (rec[column + i] - org[column + i]);
          lanes[i] += value[column + i] * (q * q);
        }
      }
    }
    held += w / step;
    if (held + w / step > 16 || row == h - 1) {
      for (int i = 0; i < JW_LANES; i++) {
        sum += (double) lanes[i];
        lanes[i] = 0;
      }
      held = 0;
    }
    value += p->stride;
    org += org_stride;
    rec += rec_stride;
  }
  return sum;
}

/* Adds the inner products of a rectangle of at most 16x16 to products, and returns its sum of squares. */
static double jw_products(const jw_state *state, const jw_plane *p, int x, int y, int w, int h, const JW_SAMPLE *org,
                          int org_stride, const JW_SAMPLE *rec, int rec_stride, double *products) {
  float  q[256];
  float  lanes[4] = {0, 0, 0, 0};
  size_t line     = (size_t) state->rows * (size_t) p->stride;
  for (int row = 0; row < h; row++)
    for (int column = 0; column < w; column++)
      q[row * w + column] = (float) (rec[row * rec_stride + column] - org[row * org_stride + column]);
  for (int j = 0; j < w * h; j += 4) {
    for (int i = 0; i < 4; i++) lanes[i] += q[j + i] * q[j + i];
  }
  for (int s = 0; s < state->rows; s++) {
    float        sums[4] = {0, 0, 0, 0};
    const float *values  = p->values + (size_t) y * line + (size_t) s * (size_t) p->stride + (size_t) x;
    for (int row = 0; row < h; row++) {
      for (int column = 0; column < w; column += 4) {
        for (int i = 0; i < 4; i++) sums[i] += values[column + i] * q[row * w + column + i];
      }
      values += line;
    }
    products[s] += (double) sums[0] + (double) sums[1] + (double) sums[2] + (double) sums[3];
  }
  return (double) lanes[0] + (double) lanes[1] + (double) lanes[2] + (double) lanes[3];
}

/* Place of a 4x4 unit in the z-order of its grid block; column and row < 4. */
static int jw_z_order(int column, int row) {
  return (column & 1) | (row & 1) << 1 | (column & 2) << 1 | (row & 2) << 2;
}

int jw_products_before(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *picture_org,
                       int picture_org_stride, const JW_SAMPLE *picture_rec, int picture_rec_stride, double *products) {
  const jw_plane *p      = &state->plane[plane];
  int             left   = x / p->grid * p->grid;
  int             top    = y / p->grid * p->grid;
  int             before = jw_z_order((x - left) / 4, (y - top) / 4);
  if (x + w > left + p->grid || y + h > top + p->grid) return 0;
  for (int s = 0; s < state->rows; s++) products[s] = 0;
  if (!picture_org || !picture_rec) return state->rows;
  for (int unit = 0, step; unit < before; unit += step) {
    int side, ux, uy, uw, uh;
    step = unit % 4 == 0 && unit + 4 <= before ? 4 : 1;
    side = step == 4 ? 8 : 4;
    ux   = left + 4 * ((unit & 1) | (unit >> 1 & 2));
    uy   = top + 4 * ((unit >> 1 & 1) | (unit >> 2 & 2));
    uw   = p->coded_width - ux < side ? p->coded_width - ux : side;
    uh   = p->coded_height - uy < side ? p->coded_height - uy : side;
    if (uw > 0 && uh > 0)
      jw_products(state, p, ux, uy, uw, uh, picture_org + (ptrdiff_t) uy * picture_org_stride + ux, picture_org_stride,
                  picture_rec + (ptrdiff_t) uy * picture_rec_stride + ux, picture_rec_stride, products);
  }
  return state->rows;
}

double jw_form(const jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org, int org_stride,
               const JW_SAMPLE *rec, int rec_stride, const JW_SAMPLE *picture_org, int picture_org_stride,
               const JW_SAMPLE *picture_rec, int picture_rec_stride) {
  const jw_plane *p = &state->plane[plane];
  double          before[JW_MAX_ROWS], added[JW_MAX_ROWS];
  double          sum = 0;
  int             count = jw_products_before(state, plane, x, y, w, h, picture_org, picture_org_stride, picture_rec,
                                             picture_rec_stride, before);
  for (int by = 0; by < h; by += count ? h : p->grid) {
    for (int bx = 0; bx < w; bx += count ? w : p->grid) {
      int bw = w - bx < p->grid ? w - bx : p->grid;
      int bh = h - by < p->grid ? h - by : p->grid;
      memset(added, 0, (size_t) state->rows * sizeof *added);
      sum += state->settings.tau
             * jw_products(state, p, x + bx, y + by, bw, bh, org + (ptrdiff_t) by * org_stride + bx, org_stride,
                           rec + (ptrdiff_t) by * rec_stride + bx, rec_stride, added);
      for (int s = 0; s < state->rows; s++) sum += added[s] * (added[s] + (count ? 2 * before[s] : 0));
    }
  }
  return sum;
}

double jw_cost(jw_state *state, int plane, int x, int y, int w, int h, const JW_SAMPLE *org, int org_stride,
               const JW_SAMPLE *rec, int rec_stride, const JW_SAMPLE *picture_org, int picture_org_stride,
               const JW_SAMPLE *picture_rec, int picture_rec_stride) {
  double cost;
  double products[JW_MAX_ROWS];
  int    count = 0;
  if (!state->rows)
    cost = jw_distortion(state, plane, x, y, w, h, org, org_stride, rec, rec_stride);
  else
    cost = jw_form(state, plane, x, y, w, h, org, org_stride, rec, rec_stride, picture_org, picture_org_stride,
                   picture_rec, picture_rec_stride);
  cost = floor(cost + 0.5);
  if (state->trace && state->settings.trace_costs && ++state->costs_seen % state->settings.trace_costs == 0) {
    if (state->rows)
      count = jw_products_before(state, plane, x, y, w, h, picture_org, picture_org_stride, picture_rec,
                                 picture_rec_stride, products);
    jw_trace_cost(state, plane, x, y, w, h, cost, org, org_stride, rec, rec_stride, count, products);
  }
  return cost;
}

void jw_trace_bits(jw_state *state, int poc, char type, int x, int y, int w, int h, long bits) {
  if (state->trace) fprintf(state->trace, "bits %d %c %d %d %d %d %ld\n", poc, type, x, y, w, h, bits);
}

void jw_trace_cost(jw_state *state, int plane, int x, int y, int w, int h, double cost, const JW_SAMPLE *org,
                   int org_stride, const JW_SAMPLE *rec, int rec_stride, int count, const double *products) {
  fprintf(state->trace, "cost %d %c %d %d %d %d %.17g %d", state->poc, "yuv"[plane], x, y, w, h, cost, count);
  for (int s = 0; s < count; s++) fprintf(state->trace, " %.17g", products[s]);
  for (int row = 0; row < h; row++) {
    for (int column = 0; column < w; column++)
      fprintf(state->trace, " %d", rec[row * rec_stride + column] - org[row * org_stride + column]);
  }
  fputc('\n', state->trace);
}

#endif /* JAXWRAP_WEIGHTS_IMPLEMENTATION */
