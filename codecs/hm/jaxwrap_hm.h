/* HM's side of weighted rate-distortion optimisation: what the inserted lines of hm.patch call.
 *
 * State is global, as HM searches one block at a time. Without a map every function here leaves HM's numbers alone.
 */
#ifndef JAXWRAP_HM_H
#define JAXWRAP_HM_H

#include "TypeDef.h"
#define JW_SAMPLE Pel
#include "jaxwrap_weights.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "TComDataCU.h"
#include "TComPic.h"
#include "TComTU.h"
#include "TComYuv.h"

namespace jaxwrap {

/* Options as HM parses them. */
struct Options {
  std::string map, trace;
  Int         mode, period, decisions, traceCosts;
  Bool        qpOffset;
  Double      tau, lambdaScale;
};

/* The block whose distortion is taken next. */
struct Block {
  TComDataCU *cu;
  ComponentID component;
  Int         x, y;
};

/* Sums of one SAO type over one CTU, with weights. */
struct Sao {
  Bool   on;
  Int    plane, x, y, stride;
  Double diff[MAX_NUM_SAO_CLASSES], count[MAX_NUM_SAO_CLASSES];
};

extern jw_state state;
extern Block    block;
extern Sao      sao;
extern Double   motionRoot;  /* sqrt of the mean weight of the prediction unit that motion is searched for */
extern Bool     scaling;     /* within TEncSlice::setUpLambda with lambda already scaled */
extern Bool     writing;     /* CTUs are being written to the stream, not tried */
extern Int64    bitsBefore;  /* of the stream, where the coding unit begins */

/* Opens map and trace; ends the program with a message where something is wrong. */
void open(const Options &options, Int width, Int height, ChromaFormat chroma, const Int bitDepth[MAX_NUM_CHANNEL_TYPE],
          Int frames, Int codedWidth, Int codedHeight, Bool isField);
/* Before each picture. */
void picture(Int poc, Bool isIntra);

inline Bool on(Int decision) { return jw_on(&state, decision) != 0; }
/* Distortions may be negative. */
inline Bool isSigned() { return state.rows != 0; }

inline Double mean(TComDataCU *cu, ComponentID component, const TComRectangle &rect) {
  return jw_mean(&state, component, (Int(cu->getCUPelX()) >> cu->getPic()->getComponentScaleX(component)) + rect.x0,
                 (Int(cu->getCUPelY()) >> cu->getPic()->getComponentScaleY(component)) + rect.y0, rect.width, rect.height);
}

/* Names the block of the next getDistPart: rect lies within the coding unit, in samples of the component. */
inline void at(TComDataCU *cu, ComponentID component, Int x, Int y) {
  if (state.active) {
    block.cu        = cu;
    block.component = component;
    block.x         = (Int(cu->getCUPelX()) >> cu->getPic()->getComponentScaleX(component)) + x;
    block.y         = (Int(cu->getCUPelY()) >> cu->getPic()->getComponentScaleY(component)) + y;
  }
}

/* sqrt of the mean luma weight of a prediction unit; 1 where SATD is not weighted. */
inline Double rootOfMean(TComDataCU *cu, UInt absPartIdx, Int width, Int height) {
  if (!on(JW_SATD)) return 1.0;
  const UInt raster = g_auiZscanToRaster[absPartIdx];
  return std::sqrt(jw_mean(&state, 0, cu->getCUPelX() + g_auiRasterToPelX[raster],
                           cu->getCUPelY() + g_auiRasterToPelY[raster], width, height));
}

/* Sum of squares of getDistPart, weighted. weight: HM's own, 1 for luma. */
Distortion distortion(const Pel *cur, Int curStride, const Pel *org, Int orgStride, Int width, Int height, Double weight);

/* Mode 1: the chosen residual of a transform unit becomes the picture's reconstruction (before clipping), so that the
 * next units of the grid block find their partial sums there. HM overwrites it when the coding unit is decided. */
void keep(TComTU &unit, TComYuv &original, TComYuv &coded);

inline Int qpOffset(TComDataCU *cu) {
  if (!state.active || !state.settings.qp_offset) return 0;
  return jw_qp_offset(&state, cu->getCUPelX(), cu->getCUPelY(), cu->getWidth(0), cu->getHeight(0));
}

inline void startUnits(UInt bits) {
  writing    = true;
  bitsBefore = bits;
}

inline void traceUnit(TComDataCU *cu, UInt absPartIdx, UInt bits) {
  if (writing && state.trace) {
    const UInt raster = g_auiZscanToRaster[absPartIdx];
    const TComSlice *slice = cu->getSlice();
    jw_trace_bits(&state, slice->getPOC(), slice->isIntra() ? 'I' : slice->isInterP() ? 'P' : 'B',
                  cu->getCUPelX() + g_auiRasterToPelX[raster], cu->getCUPelY() + g_auiRasterToPelY[raster],
                  cu->getWidth(absPartIdx), cu->getHeight(absPartIdx), long(Int64(bits) - bitsBefore));
  }
  bitsBefore = bits;
}

inline void startSao(ComponentID component, Int x, Int y, Int stride) {
  sao.on     = on(JW_FILTERS);
  sao.plane  = component;
  sao.x      = x;
  sao.y      = y;
  sao.stride = stride;
}

/* One sample: offset from the CTU's first one in the original. */
inline void addSao(Int index, ptrdiff_t offset, Int difference) {
  const Double weight = jw_mean(&state, sao.plane, sao.x + Int(offset % sao.stride), sao.y + Int(offset / sao.stride), 1, 1);
  sao.diff[index] += weight * difference;
  sao.count[index] += weight;
}

template <class Statistics> void takeSao(Statistics &statistics) {
  if (!sao.on) return;
  for (Int i = 0; i < MAX_NUM_SAO_CLASSES; i++) {
    statistics.diff[i]  = Int64(std::floor(sao.diff[i] + 0.5));
    statistics.count[i] = Int64(std::floor(sao.count[i] + 0.5));
    sao.diff[i] = sao.count[i] = 0;
  }
}

#define JAXWRAP_SAO(index) \
  if (jaxwrap::sao.on) \
    jaxwrap::addSao(Int(diff - statsData.diff) + (index), orgLine - orgBlk + x, orgLine[x] - srcLine[x]);

}  // namespace jaxwrap

#endif /* JAXWRAP_HM_H */

#if defined(JAXWRAP_WEIGHTS_IMPLEMENTATION) && !defined(JAXWRAP_HM_IMPLEMENTED)
#define JAXWRAP_HM_IMPLEMENTED

namespace jaxwrap {

jw_state state = jw_state();
Block    block = {NULL, COMPONENT_Y, 0, 0};
Sao      sao   = {false, 0, 0, 0, 0, {0}, {0}};
Double   motionRoot = 1.0;
Bool     scaling = false, writing = false;
Int64    bitsBefore = 0;

static void stop(const char *message) {
  if (message) {
    fflush(stdout);
    fprintf(stderr, "%s\n", message);
    exit(EXIT_FAILURE);
  }
}

void open(const Options &options, Int width, Int height, ChromaFormat chroma, const Int bitDepth[MAX_NUM_CHANNEL_TYPE],
          Int frames, Int codedWidth, Int codedHeight, Bool isField) {
  static Options kept;
  kept = options;
  jw_settings settings  = jw_defaults();
  settings.map          = kept.map.c_str();
  settings.mode         = kept.mode;
  settings.period       = kept.period;
  settings.decisions    = kept.decisions;
  settings.qp_offset    = kept.qpOffset;
  settings.tau          = kept.tau;
  settings.lambda_scale = kept.lambdaScale;
  settings.trace        = kept.trace.c_str();
  settings.trace_costs  = kept.traceCosts;
  if (isField && !kept.map.empty()) stop("jaxwrap: WeightMap: fields were given; wanted frames");
  const Int format = chroma == CHROMA_400 ? 400 : chroma == CHROMA_420 ? 420 : chroma == CHROMA_422 ? 422 : 444;
  const Int depth  = chroma == CHROMA_400 ? bitDepth[0] : std::max(bitDepth[0], bitDepth[1]);
  stop(jw_open(&state, &settings, width, height, format, depth, frames, codedWidth, codedHeight, "hm"));
}

void picture(Int poc, Bool isIntra) { stop(jw_picture(&state, poc, isIntra)); }

Distortion distortion(const Pel *cur, Int curStride, const Pel *org, Int orgStride, Int width, Int height, Double weight) {
  const Pel *pictureOrg = NULL, *pictureRec = NULL;
  Int        pictureOrgStride = 0, pictureRecStride = 0;
  if (state.rows) {
    TComPic *picture = block.cu->getPic();
    pictureOrg       = picture->getPicYuvOrg()->getAddr(block.component);
    pictureRec       = picture->getPicYuvRec()->getAddr(block.component);
    pictureOrgStride = picture->getPicYuvOrg()->getStride(block.component);
    pictureRecStride = picture->getPicYuvRec()->getStride(block.component);
  }
  const Double cost = jw_cost(&state, block.component, block.x, block.y, width, height, org, orgStride, cur, curStride,
                              pictureOrg, pictureOrgStride, pictureRec, pictureRecStride);
  return (Distortion)(Int64)(isChroma(block.component) ? weight * cost : cost);
}

void keep(TComTU &unit, TComYuv &original, TComYuv &coded) {
  if (!state.rows || !on(JW_SSE)) return;
  TComDataCU *cu      = unit.getCU();
  TComPic    *picture = cu->getPic();
  for (UInt c = 0; c < picture->getNumberValidComponents(); c++) {
    const ComponentID component = ComponentID(c);
    if (!unit.ProcessComponentSection(component)) continue;
    const TComRectangle &rect = unit.getRect(component);
    const Int  x = (cu->getCUPelX() >> picture->getComponentScaleX(component)) + rect.x0;
    const Int  y = (cu->getCUPelY() >> picture->getComponentScaleY(component)) + rect.y0;
    const Int  orgStride = picture->getPicYuvOrg()->getStride(component), recStride = picture->getPicYuvRec()->getStride(component);
    const Pel *org = picture->getPicYuvOrg()->getAddr(component) + y * orgStride + x;
    Pel       *rec = picture->getPicYuvRec()->getAddr(component) + y * recStride + x;
    for (UInt row = 0; row < rect.height; row++) {
      const Pel *wanted = original.getAddrPix(component, rect.x0, rect.y0 + row);
      const Pel *got    = coded.getAddrPix(component, rect.x0, rect.y0 + row);
      for (UInt column = 0; column < rect.width; column++)
        rec[row * recStride + column] = Pel(org[row * orgStride + column] + got[column] - wanted[column]);
    }
  }
}

}  // namespace jaxwrap

#endif /* JAXWRAP_WEIGHTS_IMPLEMENTATION */
