/* What the patch puts into JM 19.0 beside jaxwrap_weights.h: the options, and one function per hook.

   README.md beside the patch says where each hook sits and why. With no option given every hook returns what JM has.
   Exactly one file of the encoder defines JAXWRAP_JM_IMPLEMENTATION before it includes this header. C99. */
#ifndef JAXWRAP_JM_H
#define JAXWRAP_JM_H

#include "global.h"

#define JW_SAMPLE imgpel
#ifndef JAXWRAP_JM_IMPLEMENTATION
#include "jaxwrap_weights.h"
#else
#define JAXWRAP_WEIGHTS_IMPLEMENTATION
/* JM is built with -ffloat-store, which keeps sums out of registers: the weighted ones would take three times longer. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-float-store")
#endif
#include "jaxwrap_weights.h"
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif

#define JAXWRAP_NAME_SIZE 4096

/* Where JM's configuration parser puts the options; they are named alike. */
typedef struct
{
  char   WeightMap[JAXWRAP_NAME_SIZE];
  char   WeightTrace[JAXWRAP_NAME_SIZE];
  int    WeightMode, WeightPeriod, WeightDecisions, WeightQPOffset, WeightTraceCosts;
  double WeightTau, WeightLambdaScale;
} jaxwrap_jm_options;

extern jaxwrap_jm_options jaxwrap_options;

/* Which hooks act; asked at every block. */
typedef struct
{
  int sse, rdoq, satd, qp_offset;
} jaxwrap_jm_hooks;

extern jaxwrap_jm_hooks jaxwrap_hooks;

void    jaxwrap_open(const InputParameters *p_Inp);
void    jaxwrap_close(void);
void    jaxwrap_picture(const Slice *currSlice);
distblk jaxwrap_sse(imgpel **org, imgpel **rec, int org_x, int rec_x, int width, int height);
void    jaxwrap_partitions_before(const Macroblock *currMB, const RD_8x8DATA *chosen, int block);
void    jaxwrap_rdoq(const Macroblock *currMB, int plane, int block_x, int block_y, int size);
void    jaxwrap_search(const Macroblock *currMB, RD_PARAMS *enc_mb);
void    jaxwrap_satd_luma(const Macroblock *currMB, int **coefficients, int block_x, int block_y);
distblk jaxwrap_satd_chroma(const Macroblock *currMB, int plane, int x, int y, distblk satd);
int     jaxwrap_qp(const Macroblock *currMB, int qp);
void    jaxwrap_bits_before(const Slice *currSlice);
void    jaxwrap_bits_after(const Macroblock *currMB);

#endif

#ifdef JAXWRAP_JM_IMPLEMENTATION
#undef JAXWRAP_JM_IMPLEMENTATION

#include "biariencode.h"
#include "md_common.h"

#if !IMGTYPE || !JCOST_CALC_SCALEUP
#error "jaxwrap: wants IMGTYPE 1 and JCOST_CALC_SCALEUP 1 in lencod/inc/defines.h, as JM 19.0 has them"
#endif

/* mb_qp_delta lies in -26 ... +25 (H.264, 7.4.5), whichever macroblocks follow one another; JM does not wrap it. */
#define JAXWRAP_LARGEST_OFFSET 12

/* Distortions beyond leave no room for a rate below DISTBLK_MAX, where JM would choose no mode at all. */
#define JAXWRAP_LARGEST_COST ((double) (DISTBLK_MAX / 8))

jaxwrap_jm_options jaxwrap_options;
jaxwrap_jm_hooks   jaxwrap_hooks;

static jw_state jaxwrap_state;
static int      jaxwrap_bits;

static void jaxwrap_stop(const char *message)
{
  fprintf(stderr, "%s\n", message);
  exit(1);
}

/* Cases whose blocks are not rectangles of the source picture, or whose decisions are made elsewhere. */
static void jaxwrap_check(const InputParameters *p_Inp)
{
  const jaxwrap_jm_options *options = &jaxwrap_options;
  const FrameFormat *source = &p_Inp->source, *output = &p_Inp->output;
  int weighted = options->WeightMap[0] != 0;
  if (!weighted && !options->WeightTrace[0] && options->WeightLambdaScale == 1.0)
    return;
  if (p_Inp->rdopt != 1)
    jaxwrap_stop("jaxwrap: RDOptimization: only 1 (high complexity mode) is weighted, scaled and traced");
  if (p_Inp->PicInterlace || p_Inp->MbInterlace || p_Inp->num_of_views > 1 || p_Inp->separate_colour_plane_flag)
    jaxwrap_stop("jaxwrap: wanted frames of one view: PicInterlace=0, MbInterlace=0, NumberOfViews=1");
  if (options->WeightTrace[0] && p_Inp->RDPictureDecision)
    jaxwrap_stop("jaxwrap: WeightTrace: wanted RDPictureDecision=0, which codes every picture once");
  if (weighted && (source->width[0] != output->width[0] || source->height[0] != output->height[0]))
    jaxwrap_stop("jaxwrap: SourceResize: a map has the size of the source; wanted output of the same size");
  if (weighted && options->WeightQPOffset
      && (p_Inp->RCEnable || p_Inp->slice_mode || (p_Inp->UseRDOQuant && p_Inp->RDOQ_QP_Num > 1)))
    jaxwrap_stop("jaxwrap: WeightQPOffset=1 wants RateControlEnable=0, SliceMode=0 and RDOQ_QP_Num=1");
}

void jaxwrap_open(const InputParameters *p_Inp)
{
  static const int chroma[4] = {400, 420, 422, 444};
  const jaxwrap_jm_options *options = &jaxwrap_options;
  jw_settings settings = jw_defaults();
  const char *message;
  int width = p_Inp->output.width[0], height = p_Inp->output.height[0];

  settings.map          = options->WeightMap;
  settings.mode         = options->WeightMode;
  settings.period       = options->WeightPeriod;
  settings.decisions    = options->WeightDecisions;
  settings.qp_offset    = options->WeightQPOffset;
  settings.tau          = options->WeightTau;
  settings.lambda_scale = options->WeightLambdaScale;
  settings.trace        = options->WeightTrace;
  settings.trace_costs  = options->WeightTraceCosts;
  jaxwrap_check(p_Inp);
  message = jw_open(&jaxwrap_state, &settings, width, height, chroma[p_Inp->yuv_format],
                    imax(p_Inp->output.bit_depth[0], p_Inp->output.bit_depth[1]), p_Inp->no_frames,
                    (width + 15) / 16 * 16, (height + 15) / 16 * 16, "jm");
  if (message)
    jaxwrap_stop(message);
  jaxwrap_hooks.sse       = jw_on(&jaxwrap_state, JW_SSE);
  jaxwrap_hooks.rdoq      = jw_on(&jaxwrap_state, JW_RDOQ) && p_Inp->UseRDOQuant;
  jaxwrap_hooks.satd      = jw_on(&jaxwrap_state, JW_SATD);
  jaxwrap_hooks.qp_offset = jaxwrap_state.active && settings.qp_offset;
}

void jaxwrap_close(void)
{
  jw_close(&jaxwrap_state);
}

void jaxwrap_picture(const Slice *currSlice)
{
  const char *message = jw_picture(&jaxwrap_state, currSlice->frame_no, currSlice->slice_type == I_SLICE);
  if (message)
    jaxwrap_stop(message);
}

/* JM's SSE functions get rows of a picture and a column: which plane and line it is, the row pointers tell. */
distblk jaxwrap_sse(imgpel **org, imgpel **rec, int org_x, int rec_x, int width, int height)
{
  const VideoParameters *p_Vid = p_Enc->p_Vid;
  const StorablePicture *picture = p_Vid->enc_picture;
  int plane = 0, org_stride = (int) (org[1] - org[0]), rec_stride = (int) (rec[1] - rec[0]);
  imgpel **rec_rows;
  double cost;

  while (plane < jaxwrap_state.planes - 1
         && (org < p_Vid->pImgOrg[plane] || org >= p_Vid->pImgOrg[plane] + jaxwrap_state.plane[plane].coded_height))
    plane++;
  rec_rows = plane ? picture->imgUV[plane - 1] : picture->imgY;
  cost = jw_cost(&jaxwrap_state, plane, org_x, (int) (org - p_Vid->pImgOrg[plane]), width, height, org[0] + org_x,
                 org_stride, rec[0] + rec_x, rec_stride, p_Vid->pImgOrg[plane][0], org_stride, rec_rows[0], rec_stride);
  cost *= 1 << LAMBDA_ACCURACY_BITS;
  return (distblk) (cost > JAXWRAP_LARGEST_COST ? JAXWRAP_LARGEST_COST
                    : cost < -JAXWRAP_LARGEST_COST ? -JAXWRAP_LARGEST_COST : cost);
}

/* Mode 1: JM leaves the last 8x8 candidate in the picture; what blocks add counts from the chosen ones before them. */
void jaxwrap_partitions_before(const Macroblock *currMB, const RD_8x8DATA *chosen, int block)
{
  imgpel **rows = &currMB->p_Vid->enc_picture->imgY[currMB->pix_y];
  int b8;
  for (b8 = 0; jaxwrap_state.rows && b8 < block; b8++)
    copy_image_data_8x8(&rows[8 * (b8 >> 1)], &chosen->rec_mbY8x8[8 * (b8 >> 1)], currMB->pix_x + 8 * (b8 & 1),
                        8 * (b8 & 1));
}

static double jaxwrap_mean(const Macroblock *currMB, int plane, int block_x, int block_y, int width, int height)
{
  return jw_mean(&jaxwrap_state, plane, (plane ? currMB->pix_c_x : currMB->pix_x) + block_x,
                 (plane ? currMB->pix_c_y : currMB->pix_y) + block_y, width, height);
}

/* The quantisers look lambda up in lambda_rdoq, and nothing else does; every call of one is preceded by this. */
void jaxwrap_rdoq(const Macroblock *currMB, int plane, int block_x, int block_y, int size)
{
  const VideoParameters *p_Vid = currMB->p_Vid;
  p_Vid->lambda_rdoq[p_Vid->type][p_Vid->masterQP] =
    p_Vid->lambda_md[p_Vid->type][p_Vid->masterQP] / jaxwrap_mean(currMB, plane, block_x, block_y, size, size);
}

/* SATD x sqrt(w) + lambda R is least where SATD + lambda R / sqrt(w) is; partitions of a macroblock share w. */
void jaxwrap_search(const Macroblock *currMB, RD_PARAMS *enc_mb)
{
  const InputParameters *p_Inp = currMB->p_Inp;
  double mean = jaxwrap_mean(currMB, 0, 0, 0, MB_BLOCK_SIZE, MB_BLOCK_SIZE);
  int k;
  for (k = F_PEL; k <= Q_PEL; k++)
  {
    double scale = p_Inp->MEErrorMetric[k] == ERROR_SSE && !p_Inp->MESoftenSSEMetric ? mean : sqrt(mean);
    enc_mb->lambda_me[k] /= scale;
    enc_mb->lambda_mf[k] = (int) (enc_mb->lambda_mf[k] / scale + 0.5);
  }
}

/* Scales the Hadamard coefficients of a 4x4 block of the 16x16 prediction. */
void jaxwrap_satd_luma(const Macroblock *currMB, int **coefficients, int block_x, int block_y)
{
  double scale = sqrt(jaxwrap_mean(currMB, 0, block_x, block_y, BLOCK_SIZE, BLOCK_SIZE));
  int i, j;
  for (j = 0; j < BLOCK_SIZE; j++)
    for (i = 0; i < BLOCK_SIZE; i++)
      coefficients[j][i] = (int) floor(scale * coefficients[j][i] + 0.5);
}

/* Relative to the macroblock, whose lambda has been divided already. */
distblk jaxwrap_satd_chroma(const Macroblock *currMB, int plane, int x, int y, distblk satd)
{
  double scale = sqrt(jw_mean(&jaxwrap_state, plane, x, y, BLOCK_SIZE, BLOCK_SIZE)
                      / jaxwrap_mean(currMB, 0, 0, 0, MB_BLOCK_SIZE, MB_BLOCK_SIZE));
  return (distblk) floor(scale * (double) satd + 0.5);
}

/* Lambda stays that of the slice: the weighted distortion moves it, or nothing does. */
int jaxwrap_qp(const Macroblock *currMB, int qp)
{
  if (!jaxwrap_hooks.qp_offset)
    return qp;
  return currMB->p_Slice->qp
         + iClip3(-JAXWRAP_LARGEST_OFFSET, JAXWRAP_LARGEST_OFFSET,
                  jw_qp_offset(&jaxwrap_state, currMB->pix_x, currMB->pix_y, MB_BLOCK_SIZE, MB_BLOCK_SIZE));
}

static int jaxwrap_bits_so_far(const Slice *currSlice)
{
  const DataPartition *partition = &currSlice->partArr[0];
  if (currSlice->symbol_mode == CABAC)
    return arienco_bits_written((EncodingEnvironmentPtr) &partition->ee_cabac);
  return 8 * partition->bitstream->byte_pos + 8 - partition->bitstream->bits_to_go;
}

void jaxwrap_bits_before(const Slice *currSlice)
{
  if (jaxwrap_state.trace)
    jaxwrap_bits = jaxwrap_bits_so_far(currSlice);
}

void jaxwrap_bits_after(const Macroblock *currMB)
{
  const Slice *currSlice = currMB->p_Slice;
  char type = currSlice->slice_type == I_SLICE ? 'I' : currSlice->slice_type == B_SLICE ? 'B' : 'P';
  if (jaxwrap_state.trace)
    jw_trace_bits(&jaxwrap_state, currSlice->frame_no, type, currMB->pix_x, currMB->pix_y, MB_BLOCK_SIZE,
                  MB_BLOCK_SIZE, jaxwrap_bits_so_far(currSlice) - jaxwrap_bits);
}

#endif
