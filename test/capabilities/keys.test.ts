import { generateKeyPairSync } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import {
  createKeyFile,
  describeKey,
  isPublicKey,
  KeyPair,
  keyId,
  loadKey,
  loadPublicKey,
  openKey,
  parsePublicKey,
  publicKeyBytes,
  publicKeyFromBytes,
  verifySignature,
} from '../../src/capabilities/index.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'cloudapp-keys-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

describe('key files', () => {
  test('are made once, secret, and read back', async () => {
    const path = join(folder, 'sd.key')
    const made = await createKeyFile(path)
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    expect((await loadKey(path)).publicKey).toBe(made.publicKey)
    expect((await readFile(`${path}.pub`, 'utf8')).trim()).toBe(made.publicKey)
    for (const from of [path, `${path}.pub`, made.publicKey]) expect(await loadPublicKey(from)).toBe(made.publicKey)
    expect(await describeKey(path)).toEqual({ path, publicKey: made.publicKey, id: keyId(made.publicKey) })
    await expect(createKeyFile(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    expect((await openKey(path, { create: true })).publicKey).toBe(made.publicKey)
    expect((await openKey(join(folder, 'new.key'), { create: true })).publicKey).not.toBe(made.publicKey)
  })

  test.each([0o640, 0o604, 0o620])('with mode %o are refused, with the command that mends it', async (mode) => {
    const path = join(folder, `open-${mode}.key`)
    await createKeyFile(path)
    await chmod(path, mode)
    await expect(loadKey(path)).rejects.toThrow(`chmod 600 ${path}`)
  })

  test('that are none, or hold another kind of key, are refused', async () => {
    const path = join(folder, 'other.key')
    await expect(loadKey(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await expect(openKey(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await writeFile(path, 'no key', { mode: 0o600 })
    await expect(loadKey(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    await writeFile(path, privateKey.export({ format: 'pem', type: 'pkcs8' }))
    await expect(loadKey(path)).rejects.toThrow('an Ed25519 key is needed, this is ec')
    await writeFile(path, 'x'.repeat(5000))
    await expect(loadKey(path)).rejects.toThrow('is no key file')
    await expect(loadKey('/dev/zero')).rejects.toThrow('is no key file')
  })
})

describe('public keys', () => {
  test('have one text each', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 32, maxLength: 32 }), (raw) => {
        const text = publicKeyFromBytes(raw)
        expect(isPublicKey(text)).toBe(true)
        expect(Buffer.compare(publicKeyBytes(text), raw)).toBe(0)
      }),
    )
    const key = KeyPair.generate().publicKey
    for (const bad of [
      key.slice(0, -1),
      `${key}A`,
      `${key}=`,
      `${key.slice(0, -1)}B`,
      ` ${key}`,
      key.replace('ed', 'Ed'),
      7,
    ]) {
      expect(isPublicKey(bad), String(bad)).toBe(false)
      expect(() => parsePublicKey(bad as string)).toThrow('is no public key')
    }
  })

  test('that are no points verify nothing', () => {
    const message = Buffer.from('x')
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 32, maxLength: 32 }),
        fc.uint8Array({ minLength: 60, maxLength: 68 }),
        (raw, sig) => {
          expect(verifySignature(publicKeyFromBytes(raw), message, sig)).toBe(false)
        },
      ),
    )
  })

  test('verify what their private half signed, as RFC 8032 says (7.1, test 2)', () => {
    const pair = KeyPair.fromSeed(
      Buffer.from('4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb', 'hex'),
    )
    const raw = Buffer.from(publicKeyBytes(pair.publicKey)).toString('hex')
    expect(raw).toBe('3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c')
    const signature = pair.sign(Buffer.from('72', 'hex'))
    expect(Buffer.from(signature).toString('hex')).toMatch(/^92a009a9f0d4cab8720e820b5f642540/)
    expect(verifySignature(pair.publicKey, Buffer.from('72', 'hex'), signature)).toBe(true)
    expect(verifySignature(pair.publicKey, Buffer.from('73', 'hex'), signature)).toBe(false)
    expect(KeyPair.fromPem(pair.exportPem()).publicKey).toBe(pair.publicKey)
    expect(JSON.stringify(pair)).toBe(JSON.stringify({ publicKey: pair.publicKey }))
  })
})
