/* s3_xml.h: the XML that S3 answers, read without trust: what of it is used is elements with text.
 *
 * No document types, no entities but the five of XML and character numbers, no attributes used; nesting at most
 * S3_XML_DEPTH_MAX, a text at most S3_XML_TEXT_BYTES - 1 bytes. Nothing is allocated. */
#ifndef LLMC_S3_XML_H
#define LLMC_S3_XML_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>

enum { S3_XML_DEPTH_MAX = 16, S3_XML_PATH_BYTES = 256, S3_XML_TEXT_BYTES = 2048 };

/* At each end of an element: its path, such as "ListPartsResult/Part/ETag" (without name spaces), and its text, decoded
 * (of an element with children: NULL). Return false to end early, which is no error. */
typedef bool (*S3XmlEach)(void *ctx, const char *path, const char *text);

/* False: it is not such XML; err says at which byte. Elements before that byte were given to `each`. */
bool s3_xml_read(const char *text, size_t bytes, S3XmlEach each, void *ctx, Error *err);

/* The <Error> of an answer, also where it stands in one with status 200. */
typedef struct {
    char code[64], message[256];
} S3Error;
/* True if the answer's root is Error; unprintable bytes become '?'. */
bool s3_xml_error(const char *text, size_t bytes, S3Error *error);
#endif
