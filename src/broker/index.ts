export * from './audit/index.js'
export { type Broker, type BrokerListenOptions, type BrokerOptions, openBroker } from './broker.js'
export {
  type BrokerConnection,
  type ConnectOptions,
  connectBroker,
  connectOwner,
  type Granted,
  type OwnerConnection,
  type OwnerDelegateOptions,
} from './client.js'
export * from './direct/index.js'
export type { OwnLease, OwnVm, Revoked } from './owner-target.js'
