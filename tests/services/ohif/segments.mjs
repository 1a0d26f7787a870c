// What OHIF makes of a DICOM SEG: its segments, and the labels that it lays on each image of the series.
//   node segments.mjs SEG HEADERS OUT
// HEADERS: the series' headers in the DICOM JSON model, as a DICOMweb server gives them to the viewer.
import { readFileSync, writeFileSync } from "node:fs";
import { adaptersSEG } from "@cornerstonejs/adapters";
import { metaData } from "@cornerstonejs/core";
import dcmjs from "dcmjs";

const [seg, headers, out] = process.argv.slice(2);
const first = (item) => (Array.isArray(item) ? item[0] : item);

const images = new Map(); // what the viewer knows of each image, by its id
JSON.parse(readFileSync(headers)).forEach((header, file) => {
  const instance = dcmjs.data.DicomMetaDictionary.naturalizeDataset(header);
  for (let frame = 1; frame <= Number(instance.NumberOfFrames ?? 1); frame++) {
    const groups = [instance.PerFrameFunctionalGroupsSequence?.[frame - 1], first(instance.SharedFunctionalGroupsSequence)];
    const numbers = (sequence, keyword) =>
      (groups.map((g) => first(g?.[sequence])?.[keyword]).find((v) => v !== undefined) ?? instance[keyword]).map(Number);
    const direction = numbers("PlaneOrientationSequence", "ImageOrientationPatient");
    const spacing = numbers("PixelMeasuresSequence", "PixelSpacing");
    images.set(`wadors:series/${file}/frames/${frame}`, {
      instance,
      generalImageModule: { sopInstanceUID: instance.SOPInstanceUID },
      generalSeriesModule: { seriesInstanceUID: instance.SeriesInstanceUID, modality: instance.Modality },
      imagePixelModule: { bitsAllocated: 16, samplesPerPixel: 1, photometricInterpretation: "MONOCHROME2" },
      imagePlaneModule: {
        rows: instance.Rows,
        columns: instance.Columns,
        pixelSpacing: spacing,
        rowPixelSpacing: spacing[0],
        columnPixelSpacing: spacing[1],
        imageOrientationPatient: direction,
        rowCosines: direction.slice(0, 3),
        columnCosines: direction.slice(3),
        imagePositionPatient: numbers("PlanePositionSequence", "ImagePositionPatient"),
        frameOfReferenceUID: instance.FrameOfReferenceUID,
      },
    });
  }
});
metaData.addProvider((kind, id) => images.get(id)?.[kind], 10000);

const ids = [...images.keys()];
const read = adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer;
const found = await read(ids, new Uint8Array(readFileSync(seg)).buffer, { metadataProvider: metaData });
const shown = ids.map((id, i) => {
  const plane = images.get(id).imagePlaneModule;
  const labels = new Uint8Array(plane.rows * plane.columns);
  for (const layer of found.labelMapImages) layer[i].getPixelData().forEach((v, k) => v && (labels[k] = v));
  return { ...plane, labels: Buffer.from(labels).toString("base64") };
});
writeFileSync(out, JSON.stringify({ segments: found.segMetadata.data.filter(Boolean), images: shown }));
