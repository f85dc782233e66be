import { readSync, writeSync } from 'node:fs'
import { CloudAppError } from '../../../errors.js'
import { type ParseJob, parseImage } from './image.js'
import { FRAME_HEADER, Frame, frameHeader } from './protocol.js'
import { Window } from './window.js'

/**
 * The parser process: reads a job and image bytes on stdin, writes the parsed image on stdout. It holds no rights: as
 * root it becomes nobody before the first byte is read, it opens no file, and whoever takes it over can only answer
 * wrongly about the guest it came from.
 */

/** `nobody` and `nogroup` on every common Linux. */
const NOBODY = 65_534

function dropRights(): void {
  if (process.geteuid?.() !== 0 && process.getuid?.() !== 0) return
  process.setgroups?.([NOBODY])
  process.setgid?.(NOBODY)
  process.setuid?.(NOBODY)
}

function writeAll(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at, bytes.length - at)
}

function send(type: number, body: Uint8Array): void {
  writeAll(frameHeader(type, body.length))
  writeAll(body)
}

function sendJson(type: number, value: unknown): void {
  send(type, Buffer.from(JSON.stringify(value)))
}

function readExactly(length: number): Buffer {
  const buffer = Buffer.allocUnsafe(length)
  for (let at = 0; at < length; ) {
    const got = readSync(0, buffer, at, length - at, null)
    // The parent has gone: nobody waits for an answer.
    if (got === 0) process.exit(0)
    at += got
  }
  return buffer
}

function receive(type: number): Buffer {
  const header = readExactly(FRAME_HEADER)
  if (header[4] !== type) throw new Error(`frame ${header[4]} where ${type} belongs`)
  return readExactly(header.readUInt32LE() - 1)
}

function fetch(at: number, length: number): Uint8Array {
  const request = Buffer.alloc(8)
  request.writeUInt32LE(at)
  request.writeUInt32LE(length, 4)
  send(Frame.Read, request)
  return receive(Frame.Data)
}

function main(): void {
  dropRights()
  sendJson(Frame.Hello, { uid: process.getuid?.() ?? -1 })
  const job = JSON.parse(receive(Frame.Job).toString('utf8')) as ParseJob
  try {
    const { image, symbols, types } = parseImage(new Window(job.size, fetch), job)
    sendJson(Frame.Image, image)
    send(Frame.Symbols, symbols)
    send(Frame.Types, types)
    send(Frame.Done, new Uint8Array(0))
  } catch (error) {
    const part = CloudAppError.is(error) ? String(error.details?.part ?? 'kernel image') : 'kernel image'
    const message = error instanceof Error ? error.message : String(error)
    sendJson(Frame.Failed, { part: part.slice(0, 64), message: message.slice(0, 2048) })
  }
}

main()
