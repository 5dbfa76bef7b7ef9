-- CreateEnum
CREATE TYPE "SlotStatus" AS ENUM ('proposed', 'voted', 'confirmed', 'active', 'completed', 'skipped');

-- CreateEnum
CREATE TYPE "ActivityCategory" AS ENUM ('dining', 'drinks', 'culture', 'outdoors', 'active', 'entertainment', 'shopping', 'experience', 'nightlife', 'group_activity', 'wellness');

-- CreateEnum
CREATE TYPE "NodeStatus" AS ENUM ('pending', 'approved', 'flagged', 'archived');

-- CreateEnum
CREATE TYPE "SignalType" AS ENUM ('view', 'confirm', 'complete', 'dwell', 'skip', 'loved', 'disliked');

-- CreateEnum
CREATE TYPE "ModelStage" AS ENUM ('staging', 'shadow', 'production', 'archived');

-- CreateTable
CREATE TABLE "User" (
    "id" TEXT NOT NULL,
    "email" TEXT NOT NULL,

    CONSTRAINT "User_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "Trip" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "city" TEXT NOT NULL,
    "startDate" TIMESTAMP(3) NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "personaSeed" JSONB,

    CONSTRAINT "Trip_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ItinerarySlot" (
    "id" TEXT NOT NULL,
    "tripId" TEXT NOT NULL,
    "activityNodeId" TEXT,
    "dayNumber" INTEGER NOT NULL,
    "sortOrder" INTEGER NOT NULL,
    "status" "SlotStatus" NOT NULL DEFAULT 'proposed',

    CONSTRAINT "ItinerarySlot_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ActivityNode" (
    "id" TEXT NOT NULL,
    "city" TEXT NOT NULL,
    "category" "ActivityCategory" NOT NULL,
    "status" "NodeStatus" NOT NULL DEFAULT 'pending',
    "name" TEXT NOT NULL,
    "latitude" DOUBLE PRECISION NOT NULL,
    "longitude" DOUBLE PRECISION NOT NULL,

    CONSTRAINT "ActivityNode_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "BehavioralSignal" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "tripId" TEXT,
    "slotId" TEXT,
    "activityNodeId" TEXT,
    "signalType" "SignalType" NOT NULL,
    "modelVersion" TEXT,

    CONSTRAINT "BehavioralSignal_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "PersonaDimension" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "dimension" TEXT NOT NULL,
    "value" TEXT NOT NULL,
    "confidence" DOUBLE PRECISION NOT NULL DEFAULT 1.0,
    "source" TEXT NOT NULL DEFAULT 'onboarding',
    "updatedAt" TIMESTAMP(3) NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "PersonaDimension_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "RankingEvent" (
    "id" TEXT NOT NULL,
    "userId" TEXT NOT NULL,
    "tripId" TEXT NOT NULL,
    "sessionId" TEXT,
    "dayNumber" INTEGER NOT NULL,
    "modelName" TEXT NOT NULL,
    "modelVersion" TEXT NOT NULL,
    "candidateIds" TEXT[],
    "rankedIds" TEXT[],
    "selectedIds" TEXT[],
    "surface" TEXT NOT NULL,
    "shadowModelName" TEXT,
    "shadowModelVersion" TEXT,
    "shadowRankedIds" TEXT[],
    "latencyMs" INTEGER,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "RankingEvent_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ModelRegistry" (
    "id" TEXT NOT NULL,
    "modelName" TEXT NOT NULL,
    "modelVersion" TEXT NOT NULL,
    "stage" "ModelStage" NOT NULL DEFAULT 'staging',
    "modelType" TEXT NOT NULL,
    "description" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL,

    CONSTRAINT "ModelRegistry_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "User_email_key" ON "User"("email");

-- CreateIndex
CREATE INDEX "Trip_userId_idx" ON "Trip"("userId");

-- CreateIndex
CREATE INDEX "ItinerarySlot_tripId_dayNumber_idx" ON "ItinerarySlot"("tripId", "dayNumber");

-- CreateIndex
CREATE INDEX "ActivityNode_city_idx" ON "ActivityNode"("city");

-- CreateIndex
CREATE INDEX "BehavioralSignal_userId_idx" ON "BehavioralSignal"("userId");

-- CreateIndex
CREATE INDEX "BehavioralSignal_tripId_idx" ON "BehavioralSignal"("tripId");

-- CreateIndex
CREATE INDEX "BehavioralSignal_activityNodeId_idx" ON "BehavioralSignal"("activityNodeId");

-- CreateIndex
CREATE INDEX "PersonaDimension_userId_idx" ON "PersonaDimension"("userId");

-- CreateIndex
CREATE INDEX "PersonaDimension_dimension_value_idx" ON "PersonaDimension"("dimension", "value");

-- CreateIndex
CREATE UNIQUE INDEX "PersonaDimension_userId_dimension_key" ON "PersonaDimension"("userId", "dimension");

-- CreateIndex
CREATE INDEX "RankingEvent_userId_createdAt_idx" ON "RankingEvent"("userId", "createdAt");

-- CreateIndex
CREATE INDEX "RankingEvent_tripId_dayNumber_idx" ON "RankingEvent"("tripId", "dayNumber");

-- CreateIndex
CREATE INDEX "RankingEvent_modelName_modelVersion_idx" ON "RankingEvent"("modelName", "modelVersion");

-- CreateIndex
CREATE UNIQUE INDEX "ModelRegistry_modelName_modelVersion_key" ON "ModelRegistry"("modelName", "modelVersion");

-- AddForeignKey
ALTER TABLE "Trip" ADD CONSTRAINT "Trip_userId_fkey" FOREIGN KEY ("userId") REFERENCES "User"("id") ON DELETE RESTRICT ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "ItinerarySlot" ADD CONSTRAINT "ItinerarySlot_tripId_fkey" FOREIGN KEY ("tripId") REFERENCES "Trip"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "ItinerarySlot" ADD CONSTRAINT "ItinerarySlot_activityNodeId_fkey" FOREIGN KEY ("activityNodeId") REFERENCES "ActivityNode"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "BehavioralSignal" ADD CONSTRAINT "BehavioralSignal_userId_fkey" FOREIGN KEY ("userId") REFERENCES "User"("id") ON DELETE RESTRICT ON UPDATE CASCADE;
